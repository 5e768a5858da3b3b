"""What only a GPU shows: launches without waiting, CUDA graphs, bits, streams.

Values on random cases are compared in ``test_random_cases.py``. Run with ``pytest -m gpu tests/kernels``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph
from graphattn.testing import GRAPH_KINDS, random_graph
from graphattn_kernels import (
    Structure,
    csr_attention,
    sddmm,
    segment_softmax,
    segment_sum,
    spmm,
    spread,
)
from graphattn_kernels.block_attention import block_attention
from graphattn_kernels.blocks import Blocks, from_mask

pytestmark = pytest.mark.gpu
H, D, D_V = 3, 4, 5
BACKENDS = pytest.mark.parametrize("backend", ["gather", "triton"])


def everything(structure: Structure, inputs: list[Tensor], backend: str) -> list[Tensor]:
    """Outputs and gradients of every operation, both scores of attention and every option."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    q, k, v, bias, gate, att, seed = *leaves, inputs[-1].new_tensor([1, 2], dtype=torch.int64)
    weights, lse = segment_softmax(structure, sddmm(structure, q, k, backend=backend) + bias, backend=backend)
    mixed = spmm(structure, weights, v, backend=backend)
    channels = spmm(structure, gate, k, backend=backend)
    total = spread(structure.T, segment_sum(structure.T, gate, backend=backend), backend=backend)
    shared = {"edge_bias": bias, "edge_gate": gate, "dropout_p": 0.3, "dropout_seed": seed, "backend": backend}
    dot = csr_attention(structure, q, k, v, clamp=1.0, need_product=True, **shared)  # type: ignore[arg-type]
    additive = csr_attention(structure, q, k, v, att=att, negative_slope=0.2, **shared)  # type: ignore[arg-type]
    results = [weights, lse, mixed, channels, total, *dot, *additive]
    slopes = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape) for y in results]
    return [y.detach() for y in results] + list(torch.autograd.grad(results, leaves, slopes))


def draw(structure: Structure, dtype: torch.dtype, device: str = "cuda", seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    t, s, e = structure.num_targets, structure.num_sources, structure.num_edges
    shapes = [(t, H, D), (s, H, D), (s, H, D_V), (e, H), (e, H, D), (H, D)]
    return [torch.randn(*shape, dtype=torch.float64, generator=random).to(device, dtype) for shape in shapes]


def large_structure(tokens: int = 500, edges: int = 20_000) -> Structure:
    """Two hubs, so that rows are cut and merged."""
    random = torch.Generator().manual_seed(0)
    edge_index = torch.randint(tokens - 1, (2, edges), generator=random)
    edge_index[1, : edges // 4], edge_index[0, -(edges // 4) :] = 5, 7
    order = torch.randperm(edges, generator=random)
    return TokenGraph.from_edge_index(edge_index[:, order].cuda(), tokens).structure


@BACKENDS
@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_every_operation_equals_the_reference_on_the_cpu(kind: str, bipartite: bool, backend: str) -> None:
    graph = random_graph(3, kind, bipartite=bipartite)
    inputs = draw(graph.structure, torch.float64)
    got = everything(graph.to("cuda").structure, inputs, backend)
    expected = everything(graph.structure, [x.cpu() for x in inputs], "reference")
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-11, atol=1e-11)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_hundred_repeats_give_the_same_bits(dtype: torch.dtype, backend: str) -> None:
    structure = large_structure()
    inputs = draw(structure, dtype)
    first = everything(structure, inputs, backend)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(structure, inputs, backend), strict=True))


# --- launches -------------------------------------------------------------------------------------------------


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_waits_for_the_device(dtype: torch.dtype) -> None:
    """Neither the first call on a graph, which makes its schedule, nor a later one."""
    structure = large_structure()
    inputs = draw(structure, dtype)
    expected = everything(structure, inputs, "triton")  # compiles
    fresh = large_structure()
    seed = torch.tensor([1, 2], device="cuda")
    leaves = [x.clone().requires_grad_() for x in inputs]
    q, k, v, bias, gate, att = leaves
    with waiting_is_an_error():
        for _ in range(2):
            out, lse, product = csr_attention(
                fresh, q, k, v, edge_bias=bias, edge_gate=gate, dropout_p=0.3, dropout_seed=seed, need_product=True
            )
            other, _ = csr_attention(fresh, q, k, v, att=att, negative_slope=0.2, edge_gate=gate)
            weights, _ = segment_softmax(fresh, sddmm(fresh, q, k) + bias)
            mixed = spmm(fresh, weights, v) + spread(fresh.T, segment_sum(fresh.T, bias)).sum()
            total = out.sum() + lse.sum() + product.sum() + other.sum() + mixed.sum()
            grads = torch.autograd.grad(total, leaves)
    assert torch.equal(product, expected[7])
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("known", [True, False], ids=["known", "first_seen"])
def test_a_cuda_graph_replays_on_new_inputs(dtype: torch.dtype, known: bool) -> None:
    """Forward and backward, on a graph that was used before the capture, or (compiled but) first seen inside it."""
    structure = large_structure()
    everything(structure, draw(structure, dtype), "triton")  # compiles
    if not known:
        structure = large_structure()
    static = draw(structure, dtype)
    q, k, v, bias, gate, _ = leaves = [x.requires_grad_() for x in static]
    seed = torch.tensor([3, 4], device="cuda")

    def step() -> list[Tensor]:
        shared = {"edge_bias": bias, "edge_gate": gate, "backend": "triton"}
        out, lse = csr_attention(structure, q, k, v, dropout_p=0.3, dropout_seed=seed, **shared)  # type: ignore
        other, _ = csr_attention(structure, q, k, v, att=leaves[5], negative_slope=0.2, **shared)  # type: ignore
        weights, _ = segment_softmax(structure, sddmm(structure, q, k) + bias)
        mixed = spmm(structure, weights, v)
        slopes = [y.detach().cos() for y in (out, lse, other, mixed)]
        slopes[1] = slopes[1].nan_to_num(0.0)  # an empty row has lse -inf
        grads = torch.autograd.grad((out, lse, other, mixed), leaves, slopes)
        return [out.detach(), lse.detach(), other.detach(), mixed.detach(), *grads]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    if known:
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for number in (1, 2):
        with torch.no_grad():
            for x, new in zip(static, draw(structure, dtype, seed=number), strict=True):
                x.copy_(new)
            seed.add_(1)
        graph.replay()
        replayed = [y.clone() for y in results]
        for a, b in zip(replayed, step(), strict=True):
            assert torch.equal(a, b)


def test_a_kernel_may_be_new_inside_a_cuda_graph() -> None:
    """With hubs or without is two kernels, and which one is known only when the device has counted."""
    structure = large_structure(tokens=60, edges=900)
    random = torch.Generator("cuda").manual_seed(0)
    shape = (60, 3, 20)  # of no other test
    q, k, v = (torch.randn(shape, generator=random, device="cuda").requires_grad_() for _ in range(3))

    def step() -> list[Tensor]:
        out, _ = csr_attention(structure, q, k, v, backend="triton")
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))]

    (q * q).sum().backward()  # PyTorch's own preparations
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    graph.replay()
    for a, b in zip(results, step(), strict=True):
        assert torch.equal(a, b)


def test_tiles_neither_wait_nor_mind_a_cuda_graph() -> None:
    random = torch.Generator("cuda").manual_seed(0)

    def make() -> tuple[Blocks, list[Tensor]]:
        mask = torch.rand(1, 500, 500, generator=random, device="cuda") < 0.1
        rows = [torch.randn(2, 500, 4, 32, generator=random, device="cuda").bfloat16() for _ in range(3)]
        return from_mask(mask, 64, 64), [x.requires_grad_() for x in rows]

    def step(blocks: Blocks, rows: list[Tensor]) -> list[Tensor]:
        out, lse = block_attention(blocks, *rows, clamp=3.0, backend="triton")
        return [out.detach(), *torch.autograd.grad((out, lse), rows, (out.detach().cos(), lse.detach().cos()))]

    step(*make())  # compiles
    blocks, rows = make()
    with waiting_is_an_error():
        first, second = step(blocks, rows), step(blocks, rows)
    assert all(map(torch.equal, first, second))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(blocks, rows)
    with torch.no_grad():
        for x in rows:
            x.copy_(torch.randn_like(x))
    graph.replay()
    assert all(map(torch.equal, [x.clone() for x in results], step(blocks, rows)))


@BACKENDS
def test_another_stream(backend: str) -> None:
    structure = large_structure()
    inputs = draw(structure, torch.float32)
    expected = everything(structure, inputs, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = everything(large_structure(), inputs, backend)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, got, expected))


def test_the_default_compiler_serves_every_size() -> None:
    torch._dynamo.reset()

    def step(structure: Structure, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        out, lse = csr_attention(structure, q, k, v, edge_bias=bias, clamp=2.0)
        weights, _ = segment_softmax(structure, sddmm(structure, q, k) + bias)
        return out * 2 + spmm(structure, weights, v).sin()

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens, edges in ((50, 300), (70, 1100), (500, 20_000)):
            structure = large_structure(tokens, edges)
            results = []
            for function in (compiled, step):
                leaves = [x.requires_grad_() for x in draw(structure, torch.float32)[:4]]
                out = function(structure, *leaves)
                results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    structure = large_structure()
    leaves = [x.requires_grad_() for x in draw(structure, torch.float32)]
    with torch.autocast("cuda", dtype=dtype):
        out, lse = csr_attention(structure, *leaves[:3], edge_bias=leaves[3], edge_gate=leaves[4], backend="triton")
    grads = torch.autograd.grad((out.sum(), lse.nan_to_num(neginf=0.0).sum()), leaves[:5])
    assert out.dtype == dtype and lse.dtype == torch.float32 and all(g.dtype == torch.float32 for g in grads)
    cast = [x.detach().to(dtype) for x in leaves]
    expected, _ = csr_attention(structure, *cast[:3], edge_bias=cast[3], edge_gate=cast[4], backend="triton")
    assert torch.equal(out, expected)
