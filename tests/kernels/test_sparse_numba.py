"""Numba's sparse operations on graphs large enough to be shared among threads; the rest is in ``test_sparse``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.testing import require_or_skip
from graphattn_kernels import Structure, sddmm, segment_softmax, segment_sum, spmm, spread

require_or_skip("numba")

Draw = Callable[..., Tensor]
H, D, TOKENS, EDGES = 4, 8, 400, 40_000


@pytest.fixture
def structure() -> Structure:
    """One target has 9,000 edges, which is several parts; the last has none."""
    random = torch.Generator().manual_seed(0)
    edges = torch.randint(TOKENS - 1, (2, EDGES), generator=random)
    edges[1, :9000] = 5
    return TokenGraph.from_edge_index(edges[:, torch.randperm(EDGES, generator=random)], TOKENS).structure


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(structure: Structure, tensors: list[Tensor], backend: str = "numba") -> list[Tensor]:
    """A layer of all operations, and its gradients."""
    q, k, v, gate = leaves = [x.detach().requires_grad_() for x in tensors]
    weights, lse = segment_softmax(structure, sddmm(structure, q, k, backend=backend), backend=backend)
    product = sddmm(structure, q, k, channels=True, backend=backend)
    out = spmm(structure, weights, v, backend=backend) + spmm(structure, gate * product, v, backend=backend)
    mass = spread(structure, segment_sum(structure, gate, backend=backend), backend=backend)
    finite = lse.masked_fill(lse == float("-inf"), 0.0)
    gradients = torch.autograd.grad((out.square().sum(), mass.sum(), finite.sum()), leaves)
    return [x.detach() for x in (weights, lse, product, out, mass, *gradients)]


def inputs(draw: Draw, dtype: torch.dtype) -> list[Tensor]:
    return [draw(*shape, dtype=dtype) for shape in ((TOKENS, H, D),) * 3 + ((EDGES, H, D),)]


def test_a_large_graph_equals_gather(structure: Structure, draw: Draw, threads: Callable[[int], None]) -> None:
    threads(2)
    tensors = inputs(draw, torch.float64)
    results = (everything(structure, tensors, backend) for backend in ("numba", "gather"))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_repeats_and_thread_counts_give_the_same_bits(
    dtype: torch.dtype, structure: Structure, draw: Draw, threads: Callable[[int], None]
) -> None:
    tensors = inputs(draw, dtype)
    threads(1)
    expected = everything(structure, tensors)
    for count in (1, 2, 3):
        threads(count)
        assert all(map(torch.equal, everything(structure, tensors), expected)), f"{count} threads"


def test_calls_from_several_threads_at_once(structure: Structure, draw: Draw, threads: Callable[[int], None]) -> None:
    threads(2)
    tensors = inputs(draw, torch.float32)
    expected = everything(structure, tensors)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: everything(structure, tensors), range(8)):
            assert all(map(torch.equal, got, expected))
