"""One training epoch of the published networks, with this library's attention and with other people's.

    python -m experiments.benchmarks.epochs --networks pattern,cluster,zinc --out runs/epochs

The same network each time: the same weights at the start, the same batches, optimiser and loss; only the module that
computes attention is another. The loss curves of the first steps must agree, or there is no time. Batches of 128
graphs wait on the device; what an attention needs of a batch (sorted edges, padding and masks) is made anew in every
step and is part of the time. Eager steps of networks this small are bound by the host, whatever their attention.
``--how capture`` times what the device does, every step being one CUDA graph (for all alike, and without what is made
anew). ``--how train`` times what a user of this library gets with ``capture: true``
(:class:`graphattn.training.captured.CapturedSteps`: one CUDA graph for all batches, which are filled up to one size,
copies and sorting included) beside the others' eager steps, whose shapes change from batch to batch.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.benchmarks.batches import Batch, as_pyg, make_batches
from experiments.benchmarks.device import check_device
from experiments.benchmarks.networks import NETWORKS, Network, Other
from graphattn.graph import TokenGraph
from graphattn.graph.patterns import complete
from graphattn.models import graph as models
from graphattn_datasets.metrics import sbm_class_weights

__all__ = ["Epoch", "main", "run"]

BATCH, EPOCH = 128, 10_000  # graphs of a step, and of an epoch


class Epoch(NamedTuple):
    """One line of the table."""

    network: str
    attention: str
    seconds: float
    """Of an epoch: the median step times the steps of an epoch."""
    low: float
    high: float
    steps: int
    """How many steps were timed."""
    losses: list[float]
    """Of the first steps, from the same weights."""
    ratio: float
    """Seconds over ours."""
    goal: float | None = None


def run(
    name: str,
    device: torch.device,
    *,
    steps: int,
    batches: int,
    size: int = BATCH,
    how: str = "eager",
    **small: Any,
) -> list[Epoch]:
    """Time ``steps`` training steps of every attention; ``small`` are options of the model, for tests.

    ``how``: ``"eager"``, ``"compile"`` (each block through ``torch.compile``), ``"capture"`` (a step is one CUDA
    graph, sorted edges and masks made before) or ``"train"`` (ours as captured steps, the others eager).

    Raises:
        RuntimeError: If the loss curves do not agree.
    """
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.make(**small).to(device)
    data = make_batches(name, batches, size, model.embed_pe.in_features, device)  # type: ignore[union-attr]
    kinds: dict[str, type[Other] | None] = {"ours": None, **network.others}
    found, ours = [], None
    for kind, other in kinds.items():
        torch.compiler.reset()
        times, losses = _train(copy.deepcopy(model), other, network, data, steps, device, how)
        if ours is not None:
            _check(name, kind, ours.losses, losses, network)
        scale = EPOCH / size
        low, median, high = (scale * x for x in torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist())
        ratio = 1.0 if ours is None else median / ours.seconds
        goal = network.goal if kind == next(iter(network.others)) else None
        found.append(Epoch(name, kind, median, low, high, len(times), losses, ratio, goal))
        ours = ours or found[0]
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


class Ready(NamedTuple):
    """What the layers of a network share of a batch."""

    graph: TokenGraph
    prepared: Any
    """What :meth:`Other.prepare` made."""
    member: Tensor
    weight: Tensor | None
    """Of the classes in the loss."""


def _train(
    model: nn.Module,
    other: type[Other] | None,
    network: Network,
    data: list[Batch],
    steps: int,
    device: torch.device,
    how: str,
) -> tuple[list[float], list[float]]:
    for block in model.blocks:  # type: ignore[union-attr]
        if other is not None:
            block.attention = other(block.attention)
        if how == "compile":  # one compilation serves every layer and every size of a batch
            block.compile(dynamic=True)
    if how == "train" and other is None:
        return _train_captured(model, network, data, steps, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, capturable=how == "capture")

    def train(batch: Batch, ready: Ready) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = _loss(model, other, network, batch, ready)
        loss.backward()
        optimizer.step()
        return loss

    losses, times = [], []
    for batch in data:  # warms up, and is compared
        losses.append(train(batch, _ready(other, network, batch, device)).item())
    run = _captured(train, [(x, _ready(other, network, x, device)) for x in data]) if how == "capture" else None
    for step in range(steps):
        batch = data[step % len(data)]
        _synchronize(device)
        begin = time.perf_counter()
        if run is None:
            train(batch, _ready(other, network, batch, device))
        else:
            run[step % len(data)].replay()
        _synchronize(device)
        times.append(time.perf_counter() - begin)
    return times, losses


def _train_captured(
    model: nn.Module, network: Network, data: list[Batch], steps: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """As users train with ``capture: true``, without Lightning around it."""
    from graphattn.training import GraphRegression, InductiveNodeClassification
    from graphattn.training.captured import CapturedSteps

    classes = network.classes
    task = GraphRegression(model) if classes is None else InductiveNodeClassification(model, classes)
    run = CapturedSteps(task, torch.optim.Adam(model.parameters(), lr=5e-4))
    half = network.autocast or torch.float32
    batches = [as_pyg(batch) for batch in data]
    losses, times = [], []
    with torch.autocast(device.type, half, enabled=network.autocast is not None):
        for batch in batches:
            losses.append(run(batch).loss.item())
        for _ in range(2):  # the recording, and its first replay
            run(batches[0])
        for step in range(steps):
            _synchronize(device)
            begin = time.perf_counter()
            run(batches[step % len(batches)])
            _synchronize(device)
            times.append(time.perf_counter() - begin)
    return times, losses


def _captured(train: Callable[[Batch, Ready], Tensor], data: list[tuple[Batch, Ready]]) -> list[torch.cuda.CUDAGraph]:
    """A whole training step on each batch as a CUDA graph: what the device does, without the host."""
    graphs_ = []
    for batch, ready in data:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                train(batch, ready)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            train(batch, ready)
        graphs_.append(graph)
    return graphs_


def _ready(other: type[Other] | None, network: Network, batch: Batch, device: torch.device) -> Ready:
    n, prepared = batch.x.shape[0], None
    if other is None:
        graph = TokenGraph.from_edge_index(batch.edge_index, n, ptr=batch.ptr, validate=False).prepare()
    else:
        graph = complete(n, device=device)  # a stand-in that costs nothing: others have their own idea of the batch
        prepared = other.prepare(batch)
    weight = None
    if network.classes is not None:
        weight = sbm_class_weights(batch.y, network.classes, validate=False)
    return Ready(graph, prepared, batch.member, weight)


def _loss(model: nn.Module, other: type[Other] | None, network: Network, batch: Batch, ready: Ready) -> Tensor:
    if other is not None:
        for block in model.blocks:  # type: ignore[union-attr]
            block.attention.prepared = ready.prepared
    half = network.autocast or torch.float32
    with torch.autocast(batch.x.device.type, half, enabled=network.autocast is not None):
        if other is None or batch.edge_attr is None:
            options = {"batch": ready.member, "num_graphs": batch.num_graphs}
            out = model(batch.x, ready.graph, batch.edge_attr, batch.pe, **options)
        else:
            out = _without_graph(model, batch)
    if network.classes is None:
        return F.l1_loss(out.float().view(-1), batch.y)
    return F.cross_entropy(out.float(), batch.y, weight=ready.weight)


def _without_graph(model: Any, batch: Batch) -> Tensor:
    """The forward pass of the network with edge rows, which counts the edges of a graph that others do not have."""
    h = model.embed(batch.x) + model.embed_pe(batch.pe)
    edge = model.embed_edge(batch.edge_attr)
    for block in model.blocks:
        h, edge = block(h, None, edge)
    return model.head(models.pool(h, batch.member, batch.num_graphs, model.readout))


def _check(name: str, kind: str, ours: list[float], theirs: list[float], network: Network) -> None:
    tolerance = 2e-2 if network.autocast is not None else 1e-3
    worst = max(abs(a - b) / max(abs(a), 1e-3) for a, b in zip(ours, theirs, strict=True))
    if not worst <= tolerance:
        raise RuntimeError(f"{name}: the losses with {kind} differ by {worst:.2g} (more than {tolerance:g}), no time")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    """Time the networks, print and write the table; 1 if the curves of one do not agree."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.epochs", description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="default: all three")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="20 steps, scaled to an epoch, instead of a whole one")
    parser.add_argument(
        "--how", default="eager", choices=("eager", "compile", "capture", "train"), help="default: eager"
    )
    parser.add_argument("--out", type=Path, help="folder for epochs.json and epochs.md")
    options = parser.parse_args(argv)
    device = check_device(parser, options.device, "--device cpu --quick tries it out")
    if options.how == "capture" and device.type != "cuda":
        parser.error("--how capture needs a CUDA device")
    rows: list[Epoch] = []
    code = 0
    for name in options.networks.split(","):
        if name not in NETWORKS:
            parser.error(f"--networks must be of {sorted(NETWORKS)}, got {name!r}")
        steps, batches = (20, 5) if options.quick else (-(-EPOCH // BATCH), 10)
        try:
            rows += run(name, device, steps=steps, batches=batches, how=options.how)
        except RuntimeError as error:
            print(f"epochs: {error}", file=sys.stderr)
            code = 1
        print(markdown([row for row in rows if row.network == name]), flush=True)
    if options.out is not None:
        from experiments.benchmarks.report import environment

        options.out.mkdir(parents=True, exist_ok=True)
        about = environment(["python -m experiments.benchmarks.epochs", *(argv or sys.argv[1:])], 0, device.type)
        content = {"environment": about, "rows": [row._asdict() for row in rows]}
        (options.out / "epochs.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (options.out / "epochs.md").write_text(markdown(rows), encoding="utf-8")
    return code


def markdown(rows: list[Epoch]) -> str:
    """The table."""
    lines = ["| network | attention | seconds an epoch | times ours | target |", "|---|---|---:|---:|---:|"]
    for row in rows:
        goal = "" if row.goal is None else f">= {row.goal:g}: {'yes' if row.ratio >= row.goal else '**no**'}"
        seconds = f"{row.seconds:.3f} ({row.low:.3f} to {row.high:.3f})"
        lines.append(f"| {row.network} | {row.attention} | {seconds} | {row.ratio:.2f} | {goal} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
