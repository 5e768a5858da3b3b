"""The workloads: each a graph, its tensors and what is to be computed on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from experiments.benchmarks import graphs
from experiments.benchmarks.graphs import Graph

__all__ = ["SPECS", "SLOPE", "Spec", "Workload", "find"]

SLOPE = 0.2  # of the LeakyReLU of GAT and GATv2

Score = Literal["dot", "gat", "gatv2"]
Size = Literal["tiny", "full"]


@dataclass
class Workload:
    """One problem. Tokens stand first: ``[..., N, H, D]``, leading dimensions share the graph.

    * ``dot``: scores ``q_t . k_s / sqrt(D)``, times ``edge_gate`` in each channel where there is one;
    * ``gat``: scores ``LeakyReLU(q_t + k_s)`` with one channel in q and k (the halves of GAT's score, per node);
    * ``gatv2``: scores ``att . LeakyReLU(q_t + k_s)``, and the values are k.
    """

    graph: Graph
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    score: Score = "dot"
    edge_gate: Tensor | None = None
    att: Tensor | None = None
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What gradients are taken of."""
        found = {"q": self.q, "k": self.k, "v": self.v, "edge_gate": self.edge_gate, "att": self.att}
        if self.score == "gatv2":
            del found["v"]
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def scale(self) -> float:
        """Factor of the score."""
        return self.q.shape[-1] ** -0.5 if self.score == "dot" else 1.0

    @property
    def least_mb(self) -> float:
        """MB that forward and backward cannot do without: output, log-sum-exp, delta and gradients."""
        rows = self.q.numel() // self.q.shape[-1]
        tensors = [self.v if self.score == "gatv2" else self.grad, *self.inputs.values()]
        return (sum(x.numel() * x.element_size() for x in tensors) + 2 * 4 * rows) / 2**20


class Spec(NamedTuple):
    """A workload to be made."""

    section: str
    """Which process runs it."""
    name: str
    make: Callable[[torch.device, int, Size], Workload]
    quick: bool = True
    """Part of a quick run."""
    cuda_graph: bool = False
    """So small that launches are the cost: time replays of a CUDA graph as well."""


def _tensors(
    graph: Graph,
    heads: int,
    width: int,
    dtype: torch.dtype,
    seed: int,
    device: torch.device,
    size: Size = "full",
    *,
    leading: tuple[int, ...] = (),
    score: Score = "dot",
    gated: bool = False,
) -> Workload:
    generator = torch.Generator(device=device).manual_seed(seed + 1)
    dtype = torch.float32 if size == "tiny" else dtype  # half types are slow on a CPU, where tests run

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    tokens = (*leading, graph.num_tokens, heads)
    score_width = 1 if score == "gat" else width
    q, k = draw(*tokens, score_width).requires_grad_(), draw(*tokens, score_width).requires_grad_()
    v = k if score == "gatv2" else draw(*tokens, width).requires_grad_()
    gate = draw(graph.num_edges, heads, width).requires_grad_() if gated else None
    att = (draw(heads, width) * width**-0.5).requires_grad_() if score == "gatv2" else None
    work = Workload(graph, q, k, v, draw(*tokens, width), score, gate, att)
    work.facts = {"tokens": graph.num_tokens, "edges": graph.num_edges, "least_mb": work.least_mb}
    if graph.edge_index is not None:
        work.facts["max_degree"] = int(graph.rowptr.diff().max())
    return work


def _citations(
    width: int, dtype: torch.dtype, score: Score = "dot", equal: bool = False, small: bool = False
) -> Callable[[torch.device, int, Size], Workload]:
    def make(device: torch.device, seed: int, size: Size) -> Workload:
        tokens, pairs = (40_000, 280_000) if small else (169_343, 1_157_799)
        if size == "tiny":
            tokens, pairs = 300, 900
        if equal:
            graph = graphs.equal_degrees(tokens, 2 * pairs + tokens, seed, device)
        else:
            graph = graphs.power_law_undirected(tokens, pairs, seed, device)
        return _tensors(graph, 8, width, dtype, seed, device, size, score=score)

    return make


def _products(edges: int, dtype: torch.dtype) -> Callable[[torch.device, int, Size], Workload]:
    def make(device: torch.device, seed: int, size: Size) -> Workload:
        tokens, count = (2_449_029, edges) if size == "full" else (400, 4000)
        return _tensors(graphs.power_law_directed(tokens, count, seed, device), 4, 32, dtype, seed, device, size)

    return make


def _molecules(width: int, dtype: torch.dtype, gated: bool = False) -> Callable[[torch.device, int, Size], Workload]:
    def make(device: torch.device, seed: int, size: Size) -> Workload:
        graph = graphs.molecules(1024 if size == "full" else 6, seed, device)
        return _tensors(graph, 8, width, dtype, seed, device, size, gated=gated)

    return make


def _sequence(tokens: int, causal: bool) -> Callable[[torch.device, int, Size], Workload]:
    def make(device: torch.device, seed: int, size: Size) -> Workload:
        shape = (tokens, 512, 64) if size == "full" else (160, 32, 4)
        graph = graphs.sequence(*shape, causal, device)
        return _tensors(graph, 8, 64, torch.bfloat16, seed, device, size, leading=(1,))

    return make


def _image(device: torch.device, seed: int, size: Size) -> Workload:
    side, batch = (56, 32) if size == "full" else (12, 2)
    graph = graphs.image_grid(side, side, 7, device)
    return _tensors(graph, 8, 64, torch.bfloat16, seed, device, size, leading=(batch,))


def _masks(density: float) -> Callable[[torch.device, int, Size], Workload]:
    def make(device: torch.device, seed: int, size: Size) -> Workload:
        batch, heads, n = (64, 6, 197) if size == "full" else (2, 3, 50)
        graph = graphs.random_masks(batch, heads, n, density, seed, device)
        return _tensors(graph, heads, 64, torch.float16, seed, device, size, leading=(batch,))

    return make


def _complete(tokens: int) -> Callable[[torch.device, int, Size], Workload]:
    def make(device: torch.device, seed: int, size: Size) -> Workload:
        graph = graphs.complete_graph(tokens if size == "full" else 96, device)
        return _tensors(graph, 8, 64, torch.bfloat16, seed, device, size, leading=(1,))

    return make


_HALF, _SINGLE = torch.float16, torch.float32

SPECS: tuple[Spec, ...] = (
    Spec("W1", "W1 d16 fp16", _citations(16, _HALF)),
    Spec("W1", "W1 d64 fp16", _citations(64, _HALF)),
    Spec("W1", "W1 d16 fp32", _citations(16, _SINGLE), quick=False),
    Spec("W1", "W1 d64 fp32", _citations(64, _SINGLE), quick=False),
    Spec("W1", "W1 equal degrees d16 fp16", _citations(16, _HALF, equal=True)),
    Spec("W1", "W1 equal degrees d64 fp16", _citations(64, _HALF, equal=True), quick=False),
    Spec("W1gat", "W1 GAT d16 fp16", _citations(16, _HALF, "gat")),
    Spec("W1gat", "W1 GAT d64 fp16", _citations(64, _HALF, "gat"), quick=False),
    Spec("W1gat", "W1 GATv2 d16 fp16", _citations(16, _HALF, "gatv2")),
    Spec("W1gat", "W1 GATv2 d64 fp16", _citations(64, _HALF, "gatv2"), quick=False),
    Spec("W2", "W2 d16 fp16", _molecules(16, _HALF), cuda_graph=True),
    Spec("W2", "W2 d8 fp16", _molecules(8, _HALF), cuda_graph=True),
    Spec("W2", "W2 d8 fp16 edges", _molecules(8, _HALF, gated=True), cuda_graph=True),
    Spec("W3", "W3 62M fp16", _products(62_000_000, _HALF)),
    Spec("W3", "W3 124M fp16", _products(124_000_000, _HALF), quick=False),
    Spec("W4", "W4 16k window", _sequence(16_384, False), cuda_graph=True),
    Spec("W4", "W4 16k causal", _sequence(16_384, True), quick=False, cuda_graph=True),
    Spec("W4", "W4 64k window", _sequence(65_536, False)),
    Spec("W4", "W4 64k causal", _sequence(65_536, True)),
    Spec("W4img", "W4 image grid", _image),
    Spec("W5", "W5 10%", _masks(0.10), cuda_graph=True),
    Spec("W5", "W5 25%", _masks(0.25), cuda_graph=True),
    Spec("W6", "W6 4k", _complete(4096), cuda_graph=True),
    Spec("W6", "W6 8k", _complete(8192), quick=False),
    Spec("W6", "W6 16k", _complete(16_384), quick=False),
    Spec("CPU", "W1-small d16 fp32", _citations(16, _SINGLE, small=True)),
)


def find(sections: list[str] | None, *, quick: bool, size: Size = "full") -> list[Spec]:
    """The workloads of these sections (``None``: all but the CPU's), in miniature by names that say so: these are in
    float32, and no target is about them.

    Raises:
        ValueError: If there is no such section.
    """
    known = list(dict.fromkeys(spec.section for spec in SPECS))
    unknown = sorted(set(sections or ()) - set(known))
    if unknown:
        raise ValueError(f"workloads must be of {known}, got {unknown}")
    wanted = known if sections is None else sections
    if sections is None:
        wanted.remove("CPU")
    found = [spec for spec in SPECS if spec.section in wanted and (spec.quick or not quick)]
    return [spec._replace(name=f"{spec.name} (tiny, fp32)") for spec in found] if size == "tiny" else found
