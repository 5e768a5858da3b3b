"""Votes and components of connectivity cubes, beside a copy of the cube and beside labelling on the host.

    python -m experiments.benchmarks.connectivity --out runs/connectivity                # a GPU, about a minute
    python -m experiments.benchmarks.connectivity --device cpu --out runs/connectivity-cpu

On a GPU, a batch of 8 cubes ``[8, 8, 1024, 1024]`` of logits. A *pass* reads a cube and writes one (``copy_``): 16
numbers a pixel. Cube to map reads 8 numbers a pixel and writes one, and the byte that says which; its gradient reads 8,
a number and a byte, and writes 8; agreement reads 8 and writes a byte. *Floor* is what those bytes take at the speed of
the pass. All of these are replays of CUDA graphs: what the device does, without the host's part of a call; the rows
*eager* have it (autograd hands the backward pass to another thread, which takes longer than the pass itself).

Components are timed from the bits of agreed edges to labels and counts, all on the device; on the host, from the same
bits: one copy, then ``scipy.ndimage.label`` of each image's mask (labels are not sent back).

On the CPU, one image of 1024 x 1024 on one thread: union-find over agreed edges (Numba), ``scipy.ndimage.label`` of the
mask, and SciPy's components of the edges' matrix (made beforehand), in turns; the least of the rounds counts.

Every result is compared before it is timed; 1 is returned where one is wrong, or a goal is missed with ``--strict``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components as csgraph_components
from torch import Tensor

from experiments.benchmarks.device import check_device
from experiments.benchmarks.measure import Effort, replayed, timed
from graphattn.mechanisms.connectivity import connectivity_labels, cube_to_edges
from graphattn_kernels import agreed_edges, bilateral_vote, connected_components

__all__ = ["Row", "main", "masks", "run_cpu", "run_cuda"]

KINDS = ("blobs", "noise", "dense", "threads", "full")


class Row(NamedTuple):
    """One line of the table."""

    what: str
    case: str
    ms: float
    beside: str
    """What it is compared with."""
    beside_ms: float
    goal: str = ""
    """``"<= 1.5"``: bound of ms over beside_ms; ``">= 10"``: of beside_ms over ms."""
    floor_ms: float | None = None

    @property
    def ratio(self) -> float:
        """As the goal has it."""
        return self.beside_ms / self.ms if self.goal.startswith(">") else self.ms / self.beside_ms

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; ``None`` without one."""
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.ratio <= float(bound) if sign == "<=" else self.ratio >= float(bound)


def masks(kind: str, count: int, size: int, seed: int = 0) -> np.ndarray:
    """bool ``[count, size, size]``: objects, noise near and far from the threshold of percolation, threads, all."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((count, size, size), dtype=np.float32)
    if kind == "full":
        return np.ones((count, size, size), bool)
    if kind in ("noise", "dense"):
        return noise < {"noise": -0.23, "dense": 1.3}[kind]  # 41 %: chains that wind through the whole image; 90 %
    smooth = np.stack([ndimage.gaussian_filter(x, size / 128, mode="wrap") for x in noise])
    smooth /= smooth.std()
    return smooth > 0.5 if kind == "blobs" else np.abs(smooth) < 0.06


def run_cuda(
    count: int = 8, size: int = 1024, effort: Effort | None = None, dtypes: Sequence[torch.dtype] | None = None
) -> list[Row]:
    """All rows of a GPU.

    Raises:
        RuntimeError: If a result is wrong.
    """
    device, rows = torch.device("cuda"), []
    effort = effort or Effort()
    random = torch.Generator(device).manual_seed(0)
    truth = connectivity_labels(torch.from_numpy(masks("blobs", count, size)).to(device))
    noise = torch.randn(truth.shape, generator=random, device=device)
    cube32 = torch.where(truth, 2.0, -2.0) + 1.5 * noise
    del truth, noise
    for dtype in dtypes or (torch.float32, torch.bfloat16):
        cube = cube32.to(dtype)
        _check_votes(cube)
        name = str(dtype).removeprefix("torch.")
        target, bytes_ = torch.empty_like(cube), cube.element_size()
        copy = replayed(lambda to=target, x=cube: to.copy_(x), effort).median

        def floor(numbers: int, more: int, unit: float = copy, width: int = bytes_) -> float:
            return unit * (numbers * width + more) / (16 * width)

        out, chosen = torch.ops.graphattn.bilateral_vote(cube, 1, True, "triton")
        slope = torch.randn(out.shape, generator=random, device=device).to(dtype)
        backward = torch.ops.graphattn.bilateral_vote_backward
        calls: dict[str, tuple[Callable[[], Any], float]] = {
            "cube -> map": (lambda x=cube: bilateral_vote(x), floor(9, 1)),
            "cube -> map (mean)": (lambda x=cube: bilateral_vote(x, reduce="mean"), floor(9, 0)),
            "gradient": (partial(backward, cube, 1, True, chosen, slope, "triton"), floor(17, 1)),
            "gradient (mean)": (partial(backward, cube, 0, True, None, slope, "triton"), floor(17, 0)),
            "cube -> agreed edges": (lambda x=cube: agreed_edges(x), floor(8, 1)),
        }
        for what, (call, least) in calls.items():
            rows.append(Row(what, name, replayed(call, effort).median, "copy of the cube", copy, "<= 1.5", least))
        leaf = cube.clone().requires_grad_()
        eager: dict[str, Callable[[], Any]] = {
            "cube -> map, eager": lambda x=cube: bilateral_vote(x),
            "and gradient, eager": lambda x=leaf, g=slope: torch.autograd.grad(bilateral_vote(x), x, g),
        }
        for what, call in eager.items():
            rows.append(Row(what, name, timed(call, effort).median, "copy of the cube", copy))
        plain = timed(lambda x=cube: bilateral_vote(x, backend="reference"), effort).median
        ours = next(row.ms for row in rows if row.what == "cube -> map" and row.case == name)
        rows.append(Row("cube -> map", name, ours, "plain PyTorch", plain))
        del cube, target, out, chosen, slope, leaf, calls, eager
        torch.cuda.empty_cache()
    for kind in KINDS:
        mask = masks(kind, count, size)
        bits = _bits(torch.from_numpy(mask).to(device))
        _check_components(bits)
        ours = timed(lambda x=bits: connected_components(x), effort).median
        torch.cuda.synchronize()
        host = _least(lambda x=bits: _on_host(x), 3)
        rows.append(Row("components", kind, ours, "copy and scipy.ndimage.label", host, ">= 10"))
    rows.append(_whole(cube32, effort))
    return rows


def run_cpu(size: int = 1024, rounds: int = 7) -> list[Row]:
    """All rows of a CPU, on one thread.

    Raises:
        RuntimeError: If a result is wrong.
    """
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for kind in KINDS:
            mask = torch.from_numpy(masks(kind, 1, size))
            bits = _bits(mask)
            _check_components(bits)
            matrix = _matrix(mask[0])
            _check_csgraph(bits[0], matrix)
            kept = (bits[0] != 0).numpy()
            calls = [
                lambda x=bits: connected_components(x),
                lambda x=kept: ndimage.label(x, np.ones((3, 3))),
                lambda x=matrix: csgraph_components(x, directed=False),
            ]
            times = [min(t) for t in zip(*([_once(c) for c in calls] for _ in range(rounds)), strict=True)]
            rows.append(Row("components", kind, times[0], "scipy.ndimage.label", times[1], "<= 2"))
            rows.append(Row("components", kind, times[0], "scipy.sparse.csgraph", times[2]))
    finally:
        torch.set_num_threads(threads)
    return rows


def _whole(cube: Tensor, effort: Effort) -> Row:
    """From logits to instances."""

    def ours() -> Any:
        return connected_components(agreed_edges(cube))

    def host() -> Any:
        return _on_host(agreed_edges(cube))

    mine = timed(ours, effort).median
    torch.cuda.synchronize()
    return Row("cube -> instances", "float32, noisy blobs", mine, "the same, labelled on the host", _least(host, 3))


def _bits(mask: Tensor) -> Tensor:
    return agreed_edges(connectivity_labels(mask).half(), logits=False)


def _on_host(bits: Tensor) -> list[Any]:
    return [ndimage.label(x != 0, np.ones((3, 3))) for x in bits.cpu().numpy()]


def _matrix(mask: Tensor) -> csr_array:
    """The adjacency matrix of the agreed edges."""
    from graphattn import patterns

    graph = patterns.grid(*mask.shape, neighbours=8)
    on = cube_to_edges(graph, connectivity_labels(mask))
    source, target = graph.edge_index[:, on].numpy().astype(np.int32)
    return csr_array((np.ones(len(source), np.float32), (target, source)), shape=(mask.numel(),) * 2)


def _check_votes(cube: Tensor) -> None:
    """The first image against the reference in float64, forward and gradient."""
    leaf = cube[:1].clone().requires_grad_()
    exact = leaf.detach().double().requires_grad_()
    for reduce in ("max", "mean"):
        ours, theirs = bilateral_vote(leaf, reduce=reduce), bilateral_vote(exact, reduce=reduce, backend="reference")
        slope = torch.randn_like(ours)
        grads = torch.autograd.grad(ours, leaf, slope), torch.autograd.grad(theirs, exact, slope.double())
        for what, a, b in (("map", ours, theirs), ("gradient", grads[0][0], grads[1][0])):
            error = float((a.detach().double() - b.detach()).norm() / b.detach().norm())
            # Where two votes are equal but for rounding, the gradient goes to either: one pixel of a million is 1e-3.
            if not error < (2e-2 if cube.dtype == torch.bfloat16 or what == "gradient" else 1e-4):
                raise RuntimeError(f"votes ({reduce}, {cube.dtype}): {what} is off by {error:.1e}")
    if not torch.equal(agreed_edges(cube[:1]), agreed_edges(cube[:1], backend="gather")):
        raise RuntimeError(f"agreed edges ({cube.dtype}) are not those of plain PyTorch")


def _check_components(bits: Tensor) -> None:
    """Against SciPy's labels, number by number."""
    labels, counts = connected_components(bits)
    for found, count, (expected, number) in zip(labels.cpu().numpy(), counts.tolist(), _on_host(bits), strict=True):
        if count != number or not np.array_equal(found, expected):
            raise RuntimeError(f"components: {count} found, SciPy has {number}; or labels differ")


def _check_csgraph(bits: Tensor, matrix: csr_array) -> None:
    """The same partition as SciPy's components of the graph."""
    labels, counts = connected_components(bits)
    on = (bits != 0).flatten().numpy()
    member = csgraph_components(matrix, directed=False)[1][on]
    pairs = np.unique(np.stack([member, labels.flatten().numpy()[on]]), axis=1)
    if not len(np.unique(member)) == int(counts) == pairs.shape[1]:
        raise RuntimeError("components are not those of scipy.sparse.csgraph")


def _once(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def _least(call: Callable[[], Any], rounds: int) -> float:
    return min(_once(call) for _ in range(rounds))


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        "| what | case | ms | floor, ms | beside | its ms | ratio | goal |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for row in rows:
        floor = "" if row.floor_ms is None else f"{row.floor_ms:.3f}"
        goal = "" if row.met is None else f"{row.goal}: {'yes' if row.met else '**no**'}"
        times = f"{row.ms:.3f} | {floor} | {row.beside} | {row.beside_ms:.3f}"
        lines.append(f"| {row.what} | {row.case} | {times} | {row.ratio:.2f} | {goal} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Time, print and write the table."""
    text = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.connectivity", description=text)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="small images, few repetitions: to see that it runs")
    parser.add_argument("--strict", action="store_true", help="return 1 where a goal is missed")
    parser.add_argument("--out", type=Path, help="folder for connectivity.json and connectivity.md")
    options = parser.parse_args(argv)
    check_device(parser, options.device, "--device cpu measures the components")
    size = 128 if options.quick else 1024
    try:
        if options.device == "cuda":
            rows = run_cuda(size=size, effort=Effort(0.05, 3, 10) if options.quick else Effort())
        else:
            rows = run_cpu(size, 3 if options.quick else 7)
    except RuntimeError as error:
        print(f"connectivity: {error}", file=sys.stderr)
        return 1
    print(markdown(rows), flush=True)
    if options.out is not None:
        from experiments.benchmarks.report import environment

        options.out.mkdir(parents=True, exist_ok=True)
        command = ["python -m experiments.benchmarks.connectivity", *(argv or sys.argv[1:])]
        about = environment(command, 0, options.device)
        found = [{**row._asdict(), "ratio": row.ratio, "met": row.met} for row in rows]
        content = json.dumps({"environment": about, "rows": found}, indent=1)
        (options.out / "connectivity.json").write_text(content + "\n", encoding="utf-8")
        (options.out / "connectivity.md").write_text(markdown(rows), encoding="utf-8")
    return 1 if options.strict and any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
