"""One training epoch of the published networks, with this library's attention and with other people's.

    python -m experiments.benchmarks.epochs --networks pattern,cluster,zinc --out runs/epochs

The same network each time: the same weights at the start, the same batches, optimiser and loss; only the module that
computes attention is another. The loss curves of the first steps must agree, or there is no time. Batches of 128
graphs wait on the device; what an attention needs of a batch (sorted edges, padding and masks) is made anew in every
step and is part of the time. Eager steps of networks this small are bound by the host, whatever their attention:
``--how capture`` times what the device does, every step being one CUDA graph (for all alike, and without what is made
anew).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.benchmarks import graphs
from graphattn.graph import TokenGraph
from graphattn.graph.patterns import complete
from graphattn.mechanisms.graph_transformer import GraphTransformerAttention
from graphattn.models import graph as models

__all__ = ["NETWORKS", "Epoch", "main", "run"]

BATCH, EPOCH = 128, 10_000  # graphs of a step, and of an epoch


class Batch(NamedTuple):
    """Some graphs on the device."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    pe: Tensor
    y: Tensor
    ptr: Tensor
    num_graphs: int
    longest: int
    """Tokens of the largest graph."""

    @property
    def member(self) -> Tensor:
        """int64 ``[N]``: the graph of each token."""
        return torch.arange(self.num_graphs, device=self.ptr.device).repeat_interleave(
            self.ptr.diff(), output_size=self.x.shape[0]
        )


class Other(nn.Module):
    """Attention by other means with the parameters of a GraphTransformerAttention; ``batch`` is set before a step."""

    def __init__(self, ours: GraphTransformerAttention) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = ours.query, ours.key, ours.value, ours.out
        self.edge, self.edge_out = ours.edge, ours.edge_out
        self.heads, self.scale, self.clamp = ours.heads, ours.head_width**-0.5, ours.clamp
        self.prepared: Any = None

    @staticmethod
    def prepare(batch: Batch) -> Any:
        """What all layers share of a batch, made once a step."""
        raise NotImplementedError

    def heads_of(self, x: Tensor) -> Tensor:
        """``[N, width]`` to ``[N, H, D]``."""
        return x.unflatten(-1, (self.heads, -1))


class Padded(Other):
    """Every graph padded to the longest; dense scores, a boolean mask, softmax."""

    @staticmethod
    def prepare(batch: Batch) -> Any:
        """Place of each token, and the mask ``[B, 1, L, L]``."""
        length, member = -(-batch.longest // 8) * 8, batch.member
        inside = torch.arange(batch.x.shape[0], device=member.device) - batch.ptr[member]
        source, target = batch.edge_index
        mask = torch.zeros(batch.num_graphs, 1, length, length, dtype=torch.bool, device=member.device)
        mask[member[target], 0, inside[target], inside[source]] = True
        return member * length + inside, mask

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``[B, H, L, D]`` each."""
        scores = q @ k.transpose(-1, -2) * self.scale
        if self.clamp is not None:
            scores = scores.clamp(-self.clamp, self.clamp)
        # Not -inf: a padded token, or one without neighbours, has no entry and must stay finite.
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return weights.to(v.dtype) @ v

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, None]:
        """As GraphTransformerAttention."""
        place, mask = self.prepared
        batch, length = mask.shape[0], mask.shape[-1]

        def pad(rows: Tensor) -> Tensor:
            room = rows.new_zeros(batch * length, rows.shape[-1]).index_copy(0, place, rows)
            return self.heads_of(room.view(batch, length, -1)).transpose(1, 2)

        out = self.attention(*(pad(project(x)) for project in (self.query, self.key, self.value)), mask)
        return self.out(out.transpose(1, 2).reshape(batch * length, -1).index_select(0, place)), None


class PaddedSdpa(Padded):
    """The same with PyTorch's fused attention, which cannot clamp a score: a little less work than the network asks."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``[B, H, L, D]`` each."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)


class PygOps(Other):
    """Gather, PyG's softmax and scatter: a message passing layer as one writes it with PyG."""

    @staticmethod
    def prepare(batch: Batch) -> Any:
        """The edges as they are."""
        return batch.edge_index, batch.x.shape[0]

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As GraphTransformerAttention."""
        from torch_geometric.utils import scatter, softmax

        (source, target), n = self.prepared
        q, k, v = (self.heads_of(project(x)) for project in (self.query, self.key, self.value))
        product = q[target] * k[source] * self.scale
        if edge is not None:
            assert self.edge is not None
            product = product * self.heads_of(self.edge(edge))
        scores = product.sum(-1)
        if self.clamp is not None:
            scores = scores.clamp(-self.clamp, self.clamp)
        weights = softmax(scores, target, num_nodes=n)
        out = scatter(weights.unsqueeze(-1).to(v.dtype) * v[source], target, dim=0, dim_size=n, reduce="sum")
        edge_step = None if self.edge_out is None else self.edge_out(product.flatten(1))
        return self.out(out.flatten(1)), edge_step


class Network(NamedTuple):
    """A published network and whom it is compared with."""

    make: Callable[..., nn.Module]
    classes: int | None
    """``None``: regression of one number a graph."""
    others: dict[str, type[Other]]
    autocast: torch.dtype | None
    goal: float
    """The least ratio that is promised, of the slowest ... to ours."""


NETWORKS: dict[str, Network] = {
    "pattern": Network(
        models.graph_transformer_pattern, 2, {"padded dense": Padded, "padded SDPA": PaddedSdpa}, torch.bfloat16, 2.0
    ),
    "cluster": Network(
        models.graph_transformer_cluster, 6, {"padded dense": Padded, "padded SDPA": PaddedSdpa}, torch.bfloat16, 2.0
    ),
    "zinc": Network(models.graph_transformer_zinc, None, {"PyG's operations": PygOps}, None, 3.0),
}


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

    ``how``: ``"eager"``, ``"compile"`` (each block through ``torch.compile``) or ``"capture"`` (a step is one CUDA
    graph, sorted edges and masks made before).

    Raises:
        RuntimeError: If the loss curves do not agree.
    """
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.make(**small).to(device)
    data = _batches(name, network, batches, size, model, device)
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
        count = torch.bincount(batch.y, minlength=network.classes)
        weight = torch.where(count > 0, (n - count) / n, 0.0)
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


def _batches(name: str, network: Network, count: int, size: int, model: nn.Module, device: torch.device) -> list[Batch]:
    """``count`` batches of ``size`` graphs; encodings are random, which costs a step as much as real ones."""
    width = model.embed_pe.in_features  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    found = []
    for some in _sbm(name, count, size) if network.classes is not None else _molecules(count, size, generator):
        x, edge_index, edge_attr, y, ptr = some
        pe = torch.randn(x.shape[0], width, generator=generator)
        tensors = [None if t is None else t.to(device) for t in (x, edge_index, edge_attr, pe, y, ptr)]
        found.append(Batch(*tensors, size, int(ptr.diff().max())))  # type: ignore[arg-type]
    return found


def _sbm(name: str, count: int, size: int) -> Iterator[tuple[Any, ...]]:
    """PATTERN and CLUSTER by the published procedure."""
    from graphattn_datasets.sbm import cluster_arrays, pattern_arrays

    total = count * size
    arrays = cluster_arrays(total, "train", 0) if name == "cluster" else pattern_arrays(total, "train", 0, 100)
    for _ in range(count):
        some = [next(arrays) for _ in range(size)]
        sizes = torch.tensor([len(graph.x) for graph in some])
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        x, y = (torch.cat([torch.from_numpy(getattr(graph, key)) for graph in some]).long() for key in "xy")
        edges = [torch.from_numpy(g.edge_index).long() + int(begin) for g, begin in zip(some, ptr, strict=False)]
        yield x, torch.cat(edges, 1), None, y, ptr


def _molecules(count: int, size: int, generator: torch.Generator) -> Iterator[tuple[Any, ...]]:
    """ZINC's validation graphs where ``GRAPHATTN_DATA`` has them, else random molecules of their size."""
    from graphattn_datasets.paths import data_folder

    folder = data_folder()
    if folder is not None and (folder / "zinc").is_dir():
        from torch_geometric.data import Batch as PygBatch

        from graphattn_datasets import load_dataset

        graphs_of = load_dataset("zinc_12k", split="val")
        for number in range(min(count, len(graphs_of) // size)):
            some = PygBatch.from_data_list([graphs_of[number * size + i] for i in range(size)])
            yield some.x.view(-1), some.edge_index, some.edge_attr, some.y.view(-1), some.ptr
        return
    for number in range(count):
        graph = graphs.molecules(size, number, torch.device("cpu"), smallest=10)
        x = torch.randint(28, (graph.num_tokens,), generator=generator)
        edge_attr = torch.randint(4, (graph.num_edges,), generator=generator)
        yield x, graph.edges, edge_attr, torch.randn(size, generator=generator), graph.ptr


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    """Time the networks, print and write the table; 1 if the curves of one do not agree."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.epochs", description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="default: all three")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="20 steps, scaled to an epoch, instead of a whole one")
    parser.add_argument("--how", default="eager", choices=("eager", "compile", "capture"), help="default: eager")
    parser.add_argument("--out", type=Path, help="folder for epochs.json and epochs.md")
    options = parser.parse_args(argv)
    rows: list[Epoch] = []
    code = 0
    for name in options.networks.split(","):
        if name not in NETWORKS:
            parser.error(f"--networks must be of {sorted(NETWORKS)}, got {name!r}")
        steps, batches = (20, 5) if options.quick else (-(-EPOCH // BATCH), 10)
        try:
            device = torch.device(options.device)
            rows += run(name, device, steps=steps, batches=batches, how=options.how)
        except RuntimeError as error:
            print(f"epochs: {error}", file=sys.stderr)
            code = 1
        print(markdown([row for row in rows if row.network == name]), flush=True)
    if options.out is not None:
        from experiments.benchmarks.report import environment

        options.out.mkdir(parents=True, exist_ok=True)
        about = environment(["python -m experiments.benchmarks.epochs", *(argv or sys.argv[1:])], 0)
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
