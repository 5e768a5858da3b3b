"""Time and memory of edge-biased attention (EGT) on all pairs of N tokens, whole and with SSA.

    python -m experiments.ssa.memory --out runs/ssa-memory          # about a minute on a GPU
    python -m experiments.ssa.memory --quick --out runs/quick       # a few seconds on a CPU

Two rows for each N and share of the sources: the attention alone, whose edge rows are given (no gradient, none made
anew), and the whole block, which makes new edge rows and passes a gradient to the old ones. Edge rows stand apart: the
edge tensor, which SSA does not shrink, and the copy of those rows that were drawn. Checks itself: at the largest N what
the attention alone holds for the backward pass, and on CUDA its peak, both without that copy, must be no more than 1.15
(keep + 0.02) times that of the whole graph (with --quick, keep + 0.1: token rows, which no share shrinks, are much of
what few tokens hold); else it fails.
Written: memory.md, memory.json, memory.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.runs import heading, made_by
from graphattn import patterns
from graphattn.graph.subsample import count_kept
from graphattn.mechanisms import SSA, EGTAttention
from graphattn.nn import EGTBlock

__all__ = ["Row", "held_bytes", "main", "measure"]

WIDTH, HEADS, EDGE_WIDTH = 256, 8, 32
SIZES, KEEPS = (512, 1024, 2048, 4096), (1.0, 0.25, 0.125)
QUICK = 192
MIB = 2**20


class Row(NamedTuple):
    """One measurement; MiB, above what is there before: weights, tokens and the edge tensor."""

    what: str
    tokens: int
    keep: float
    edge_mib: float
    """One edge tensor."""
    drawn_mib: float
    """The copy of the edge rows that were drawn; 0 for the whole graph, whose rows are read where they are."""
    held_mib: float
    """What autograd keeps for the backward pass, storage by storage, without weights and inputs, that copy included."""
    peak_mib: float | None
    """Of forward and backward, that copy included; ``None`` on a CPU."""
    step_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; 0 if memory falls as keep does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ssa-memory"))
    parser.add_argument("--sizes", type=int, nargs="+", help=f"default {SIZES}")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    sizes = options.sizes or ((QUICK,) if options.quick else SIZES)
    rows = []
    for what in ("attention", "block"):
        for tokens in sizes:
            for keep in KEEPS:
                rows.append(measure(what, tokens, keep, quick=options.quick))
                print(_line(rows[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    text = _markdown(rows, device, options.quick)
    (options.out / "memory.md").write_text(text, encoding="utf-8")
    whole = {"device": device, "rows": [row._asdict() for row in rows]}
    (options.out / "memory.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    with (options.out / "memory.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
    wrong = _failures(rows, max(sizes), options.quick)
    print(f"\n{text}\n{options.out / 'memory.md'}, .json, .csv")
    for line in wrong:
        print(f"memory: failed: {line}", file=sys.stderr)
    return 1 if wrong else 0


def measure(what: str, tokens: int, keep: float, *, quick: bool = False) -> Row:
    """One row."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    torch.manual_seed(0)
    block = what == "block"
    attention = EGTAttention(WIDTH, HEADS, EDGE_WIDTH, edge_output=block)
    module: nn.Module = SSA(attention, keep)
    if block:
        module = EGTBlock(SSA(attention, keep), WIDTH, EDGE_WIDTH)
    module = module.to(device, dtype).train()
    graph = patterns.complete(tokens, device=device)
    x = torch.randn(tokens, WIDTH, device=device, dtype=dtype, requires_grad=True)
    edge = torch.randn(tokens * tokens, EDGE_WIDTH, device=device, dtype=dtype, requires_grad=block)
    # The gradient of the new edge rows: a number, expanded, so that none is held that a layer above would give.
    ones = torch.ones((), device=device, dtype=dtype).expand_as(edge)

    def step() -> None:
        out, new = module(x, graph, edge)
        if block:
            torch.autograd.backward((out.sum(), new), (None, ones))
        else:
            out.sum().backward()
        x.grad = edge.grad = None
        for parameter in module.parameters():
            parameter.grad = None

    held = held_bytes(module, (x, edge), lambda: module(x, graph, edge))
    warm, timed = (1, 2) if quick or not cuda else (3, 15)
    for _ in range(warm):
        step()
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = []
    for _ in range(timed):
        begin = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    peak = (torch.cuda.max_memory_allocated() - before) / MIB if cuda else None
    size = edge.numel() * edge.element_size() / MIB
    drawn = 0.0 if keep == 1.0 else size * count_kept(tokens, keep) / tokens
    return Row(what, tokens, keep, size, drawn, held / MIB, peak, 1e3 * statistics.median(times))


def held_bytes(module: nn.Module, inputs: Sequence[Tensor], forward: object) -> int:
    """Bytes of the storages that autograd keeps after ``forward()``, without those of weights and inputs."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *inputs)}
    kept: dict[int, int] = {}
    alive = []  # so that no storage is freed and its address used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()  # type: ignore[operator]
    return sum(kept.values())


def _failures(rows: Sequence[Row], tokens: int, quick: bool) -> list[str]:
    """Where the memory of the attention alone does not fall as keep does."""
    mine = {row.keep: row for row in rows if row.what == "attention" and row.tokens == tokens}
    found = []
    for keep, row in mine.items():
        for name in ("held_mib", "peak_mib"):
            whole, part = getattr(mine[1.0], name), getattr(row, name)
            limit = keep + 0.1 if quick else 1.15 * (keep + 0.02)
            if part is not None and part - row.drawn_mib > limit * whole and keep < 1.0:
                share = (part - row.drawn_mib) / whole
                found.append(f"{name} at keep {keep:g}, {tokens} tokens: {share:.3f} of the whole graph's")
    return found


def _markdown(rows: Sequence[Row], device: str, quick: bool) -> str:
    kind = "bfloat16" if torch.cuda.is_available() else "float32"
    title = f"Edge-biased attention (EGT), width {WIDTH}, {HEADS} heads, edge rows of {EDGE_WIDTH}, {kind}, on {device}"
    lines = [
        f"# {heading(title, quick)}",
        "",
        made_by("experiments.ssa.memory"),
        "",
        "MiB above weights, tokens and the edge tensor, and without the copy of edge rows that were drawn (which "
        "stands beside it); in brackets the share of the whole graph's.",
        "",
        "| part | N | keep | edge tensor | drawn rows | held for backward | peak | step, drawing included (ms) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        whole = next(r for r in rows if (r.what, r.tokens, r.keep) == (row.what, row.tokens, 1.0))
        kept = row.held_mib - row.drawn_mib
        held = f"{kept:.1f} ({kept / whole.held_mib:.3f})"
        peak = "-"
        if row.peak_mib is not None and whole.peak_mib is not None:
            top = row.peak_mib - row.drawn_mib
            peak = f"{top:.1f} ({top / whole.peak_mib:.3f})"
        faster = f"{row.step_ms:.2f} ({whole.step_ms / row.step_ms:.2f}x)"
        lines.append(
            f"| {row.what} | {row.tokens} | {row.keep:g} | {row.edge_mib:.1f} | {row.drawn_mib:.1f} "
            f"| {held} | {peak} | {faster} |"
        )
    lines += [
        "",
        "The block's peak holds edge tensors that no share shrinks: the new rows, and gradients of new and old rows.",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    peak = "" if row.peak_mib is None else f", peak {row.peak_mib:.0f} MiB"
    return f"{row.what}, N {row.tokens}, keep {row.keep:g}: held {row.held_mib:.1f} MiB{peak}, {row.step_ms:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
