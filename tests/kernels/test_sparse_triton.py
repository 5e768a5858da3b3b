"""Triton's sparse operations: addresses beyond 2^31, the parts of hubs, CUDA graphs; the rest is in ``test_sparse``."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.testing import require_or_skip
from graphattn_kernels import sddmm, segment_softmax, segment_sum, spmm, spread

require_or_skip("triton")
CUDA = torch.cuda.is_available()
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs CUDA or TRITON_INTERPRET=1", allow_module_level=True)

pytestmark = pytest.mark.triton
DEVICE = "cuda" if CUDA else "cpu"
Draw = Callable[..., Tensor]


def test_rows_beyond_the_reach_of_32_bits() -> None:
    """Three rows that stand 2^30 apart: the last begins at element 2^31. The memory between is never touched."""
    far = torch.empty(2**31 + 8, dtype=torch.float16, device=DEVICE).as_strided((3, 1, 8), (2**30, 8, 1))
    near = torch.arange(24.0, device=DEVICE).view(3, 1, 8).half()
    far.copy_(near)
    structure = TokenGraph.from_edge_index(torch.tensor([[2, 0, 1], [0, 2, 2]], device=DEVICE), 3).structure
    ones = torch.ones(3, 1, dtype=torch.float16, device=DEVICE)
    assert torch.equal(spmm(structure, ones, far, backend="triton"), spmm(structure, ones, near, backend="gather"))
    for a, b in ((far, near), (near, far)):
        expected = sddmm(structure, near, near, backend="gather")
        assert torch.equal(sddmm(structure, a, b, backend="triton"), expected)


def test_a_hub_of_many_parts(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts than a merge takes at a time."""
    from graphattn_kernels import _schedule

    monkeypatch.setattr(_schedule, "chunk_size", lambda num_edges: 2)
    edges = 80  # 40 parts
    source = torch.randperm(edges, generator=torch.Generator().manual_seed(0))
    structure = TokenGraph.from_edge_index(
        torch.stack([source, torch.zeros_like(source)]).to(DEVICE), num_targets=1, num_sources=edges
    ).structure
    scores, values = draw(edges, 2).to(DEVICE).requires_grad_(), draw(edges, 2, 3).to(DEVICE)

    def run(backend: str) -> list[Tensor]:
        weights, lse = segment_softmax(structure, scores, backend=backend)
        out = spmm(structure, weights, values, backend=backend)
        return [weights, lse, out, *torch.autograd.grad((out.square().sum(), lse.sum()), scores)]

    torch.testing.assert_close(run("triton"), run("reference"), rtol=1e-12, atol=1e-12)


def layer(graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, backend: str) -> list[Tensor]:
    """A layer of all operations, and its gradients."""
    structure = graph.structure
    weights, _ = segment_softmax(structure, sddmm(structure, q, k, backend=backend) / 4, backend=backend)
    gated = sddmm(structure, q, k, channels=True, backend=backend)
    out = spmm(structure, weights, v, backend=backend) + spmm(structure, gated, v, backend=backend) / 8
    mass = spread(structure.T, segment_sum(structure.T, weights, backend=backend), backend=backend)
    return [out, mass, *torch.autograd.grad((out.float().square().sum(), mass.float().sum()), (q, k, v))]


def graph_with_hubs(tokens: int = 5000, edges: int = 60_000) -> TokenGraph:
    random = torch.Generator().manual_seed(0)
    edge_index = torch.randint(tokens - 50, (2, edges), generator=random)
    edge_index[1, :14_000], edge_index[0, 14_000:28_000] = 7, 9
    return TokenGraph.from_edge_index(edge_index.to(DEVICE), tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_large_graph_equals_gather(dtype: torch.dtype, draw: Draw) -> None:
    graph = graph_with_hubs()
    # An eighth: the sums over 14,000 edges must stay below the 65,504 of float16.
    leaves = [(draw(5000, 8, 16) / 8).to(DEVICE, dtype).requires_grad_() for _ in range(3)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2}[dtype]
    for a, b in zip(layer(graph, *leaves, "triton"), layer(graph, *wide, "gather"), strict=True):
        assert (a.double() - b).norm() < tolerance * b.norm()


@pytest.mark.gpu
def test_a_cuda_graph_replays_a_layer(draw: Draw) -> None:
    graph = graph_with_hubs()
    leaves = [draw(5000, 8, 16, dtype=torch.float32).to(DEVICE).requires_grad_() for _ in range(3)]
    stream = (
        torch.cuda.Stream()
    )  # autograd remembers where a leaf was used first: the default stream cannot be captured
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = layer(graph, *leaves, "triton")
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        got = layer(graph, *leaves, "triton")
    for x in got:
        x.detach().fill_(float("nan"))
    captured.replay()
    assert all(map(torch.equal, got, expected))


@pytest.mark.gpu
@pytest.mark.slow
def test_results_beyond_the_reach_of_32_bits() -> None:
    """2^18 + 1 edges of 2^13 channels."""
    edges, width = 2**18 + 1, 2**13
    random = torch.Generator().manual_seed(0)
    structure = TokenGraph.from_edge_index(torch.randint(4, (2, edges), generator=random).to(DEVICE), 4).structure
    rows = torch.randn(4, 1, width, device=DEVICE, dtype=torch.float16) / 16
    product = sddmm(structure, rows, rows, channels=True, backend="triton")
    source, target = (structure.T if flipped else structure for flipped in (True, False))
    ends = [spread(s, rows[:, :, :1], backend="gather") for s in (target, source)]
    assert torch.equal(product[:, :, :1], ends[0] * ends[1])
    assert torch.equal(product[-1000:], (rows[_owner(target)[-1000:]] * rows[_owner(source)[-1000:]]))
    total = segment_sum(structure, product, backend="triton")
    # In float64: PyTorch's own sum of 65,000 equal numbers in float32 is off by a third of a per cent.
    few = product[..., :8].double().contiguous()
    torch.testing.assert_close(
        total[..., :8].double(), segment_sum(structure, few, backend="gather"), rtol=2e-3, atol=1e-3
    )


def _owner(structure: object) -> Tensor:
    numbers = torch.arange(4.0, device=DEVICE, dtype=torch.float64)
    return spread(structure, numbers, backend="gather").long()  # type: ignore[arg-type]
