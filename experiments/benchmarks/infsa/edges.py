"""Propagators over the number of edges: time of each product with the weights, and what is kept for backward.

One sparse graph with hubs, 2 heads of 16 channels, float32; weights are a softmax over each token's in-edges, and take
a gradient, as the values do. A *product* is one with the matrix of weights or its transpose: those of the forward pass,
those computed again for backward, and those of the backward pass itself (which goes along each edge twice). On a CPU,
times are the processor time of one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from experiments.benchmarks.graphs import power_law_directed
from experiments.benchmarks.infsa.edges_report import Kept, Timed, write
from experiments.benchmarks.measure import Effort, Timing, summary, timed
from graphattn.attention import edge_weights
from graphattn.graph import TokenGraph
from graphattn.propagate import EdgeOperator, HeatKernel, Neumann, PersonalizedPageRank, Propagator, Resolvent
from graphattn.testing import LiveMemory

__all__ = ["Problem", "kept_states", "run", "times"]

HEADS, WIDTH = 2, 16
GAMMA, HEAT = 0.9, 2.0
_TOLERANCE = 1e-4  # relative, of float32 results that a solver may leave at 1e-6
_HOPS = (2, 4, 8, 16, 32, 64)
_GAMMAS = (0.5, 0.9, 0.99)

MOVERS: dict[str, Callable[[], Propagator]] = {
    "Neumann(8)": lambda: Neumann(8, GAMMA),
    "HeatKernel": lambda: HeatKernel(HEAT),
    "PersonalizedPageRank": lambda: PersonalizedPageRank(1 - GAMMA, method="gmres"),
    "Resolvent": lambda: Resolvent(GAMMA, method="gmres"),
}


class Problem:
    """Weights and values on a graph of so many edges.

    Args:
        tokens: N.
        edges: E.
        device: Where.
        seed: Of the graph and the rows.
    """

    def __init__(self, tokens: int, edges: int, device: torch.device, seed: int = 0) -> None:
        found = power_law_directed(tokens, edges, seed, device)
        self.graph: TokenGraph = found.token_graph().prepare()
        generator = torch.Generator(device).manual_seed(seed)
        q, k, v, slope = (torch.randn(tokens, HEADS, WIDTH, generator=generator, device=device) for _ in range(4))
        self.weights = edge_weights(self.graph, q, k).detach().requires_grad_()
        self.values, self.slope = v.requires_grad_(), slope

    def run(self, mover: Propagator, operator: EdgeOperator | None = None) -> list[Tensor]:
        """The result, and the gradients of the values and the weights."""
        out = mover(EdgeOperator(self.graph, self.weights) if operator is None else operator, self.values)
        return [out.detach(), *torch.autograd.grad(out, (self.values, self.weights), self.slope)]

    def count(self, mover: Propagator) -> tuple[int, int]:
        """Products of the forward pass, and of the backward pass."""
        operator = _Counted(self.graph, self.weights)
        out = mover(operator, self.values)
        forward = operator.products
        torch.autograd.grad(out, (self.values, self.weights), self.slope)
        return forward, operator.products - forward

    def error(self, name: str, results: list[Tensor]) -> float:
        """Of the result and the gradient of the values, against SciPy in float64."""
        source, target = self.graph.edge_index.cpu().numpy()
        n, worst = self.graph.num_tokens, 0.0
        for head in range(HEADS):
            weight = self.weights.detach()[:, head].double().cpu().numpy()
            matrix = csr_array((weight, (target, source)), shape=(n, n))
            for found, given, a in (
                (results[0], self.values, matrix),
                (results[1], self.slope, matrix.T.tocsr()),
            ):
                x = given.detach()[:, head].double().cpu().numpy()
                wanted = _expected(name, a, x)
                got = found[:, head].double().cpu().numpy()
                worst = max(worst, float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
        return worst


class _Counted(EdgeOperator):
    """An operator that counts its products, and those of their gradients."""

    products = 0

    def _add(self, *_: Any) -> None:
        self.products += 1

    def matmul(self, x: Tensor) -> Tensor:
        self._add()
        y = super().matmul(x)
        if y.requires_grad:
            y.register_hook(self._add)
        return y

    def t_matmul(self, x: Tensor) -> Tensor:
        self._add()
        return super().t_matmul(x)


def run(folder: Path, device: torch.device, effort: Effort, about: dict[str, Any], *, quick: bool) -> str:
    """Measure all, write the files; the text."""
    tokens, edges = _sizes(device, quick)
    rows: list[Timed] = []
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # threads that wait for each other on a busy machine tell nothing about edges
    try:
        for row in times(tokens, edges, device, effort._replace(least=3)):
            rows.append(row)
            print(f"{row.edges:>12,} edges {row.mover:22s} {row.ms:10.3f} ms, {row.products} products", flush=True)
        kept = list(kept_states(tokens, edges[1], device))
    finally:
        torch.set_num_threads(threads)  # other parts of the command come next
    return write(folder, rows, kept, about)


def _sizes(device: torch.device, quick: bool) -> tuple[int, tuple[int, ...]]:
    """Tokens, and numbers of edges."""
    if quick:
        return 200, (1000, 2000, 4000)
    if device.type == "cuda":
        return 200_000, (1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000)
    return 20_000, (50_000, 100_000, 200_000, 400_000)


def times(tokens: int, edges: tuple[int, ...], device: torch.device, effort: Effort) -> Iterator[Timed]:
    """Every propagator on every number of edges; on the smallest, results are checked first.

    Raises:
        RuntimeError: If a result is wrong.
    """
    for count in edges:
        problem = Problem(tokens, count, device)
        for name, make in MOVERS.items():
            mover, error = make(), None
            if count == edges[0]:
                error = problem.error(name, problem.run(mover))
                if not error <= _TOLERANCE:
                    raise RuntimeError(f"{name} is wrong: relative error {error:.1e}, at most {_TOLERANCE:g}")
            products = sum(problem.count(mover))
            timing = _time(lambda problem=problem, mover=mover: problem.run(mover), device, effort)  # type: ignore[misc]
            yield Timed(name, tokens, count, products, *timing[:3], error)


def kept_states(tokens: int, edges: int, device: torch.device) -> Iterator[Kept]:
    """The Neumann series of more and more hops, and the resolvent of larger and larger discounts."""
    problem = Problem(tokens, edges, device)
    movers = {f"Neumann({hops})": Neumann(hops, GAMMA) for hops in _HOPS}
    solvers = {f"Resolvent({gamma:g})": Resolvent(gamma, method="gmres") for gamma in _GAMMAS}
    for name, mover in {**movers, **solvers}.items():
        forward, backward = problem.count(mover)
        with LiveMemory() as memory:
            out = mover(EdgeOperator(problem.graph, problem.weights), problem.values)
            states = memory.sizes.count(out.nbytes)
            torch.autograd.grad(out, (problem.values, problem.weights), problem.slope)
        yield Kept(name, forward, backward, states, memory.peak / 2**20)


def _time(run: Callable[[], Any], device: torch.device, effort: Effort) -> Timing:
    if device.type == "cuda":
        return timed(run, effort)
    found, begin = [], time.perf_counter()  # it is warm: its products have been counted
    while len(found) < effort.least or (len(found) < effort.most and time.perf_counter() - begin < effort.seconds):
        started = time.process_time()  # others may use the machine
        run()
        found.append((time.process_time() - started) * 1e3)
    return summary(found)


def _expected(name: str, a: csr_array, x: np.ndarray) -> np.ndarray:
    """What a propagator makes of a matrix ``[N, N]`` and values ``[N, D]``, by its series."""
    if name == "HeatKernel":
        term, total = x, x
        for k in range(1, 40):
            term = HEAT / k * (a @ term)
            total = total + term
        return math.exp(-HEAT) * total
    total = np.zeros_like(x)
    for _ in range(8 if name == "Neumann(8)" else math.ceil(math.log(1e-8) / math.log(GAMMA))):
        total = GAMMA * (a @ (x + total))
    if name == "Neumann(8)":
        return total
    return (x + total) * ((1 - GAMMA) if name == "PersonalizedPageRank" else 1)
