"""Precision, strides, uninitialised memory, and bits that stay the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from graphattn.graph import TokenGraph
from graphattn.testing import assert_within_budget, eager_attention, random_graph
from graphattn_kernels import Structure, csr_attention, sddmm, segment_softmax, segment_sum, spmm, spread

Draw = Callable[..., Tensor]
HEADS, D, D_V = 2, 3, 4
FUSED = pytest.mark.parametrize("backend", ["gather", "numba"])
KINDS = pytest.mark.parametrize("kind", ["hub", "empty_rows", "duplicates", "no_edges"])


def attention_inputs(structure: Structure, draw: Draw) -> list[Tensor]:
    """q, k, v, bias, gate."""
    targets, sources, edges = structure.num_targets, structure.num_sources, structure.num_edges
    shapes = [(targets, HEADS, D), (sources, HEADS, D), (sources, HEADS, D_V), (edges, HEADS), (edges, HEADS, D)]
    return [draw(*shape) for shape in shapes]


def attention(
    structure: Structure, *inputs: Tensor, backend: str = "gather", **options: object
) -> tuple[Tensor, Tensor]:
    q, k, v, bias, gate = inputs
    return csr_attention(structure, q, k, v, edge_bias=bias, edge_gate=gate, backend=backend, **options)


# --- derivatives ----------------------------------------------------------------------------------------------


@FUSED
@KINDS
@pytest.mark.parametrize("clamp", [None, 0.7], ids=["free", "clamped"])
def test_gradcheck_of_attention(kind: str, clamp: float | None, backend: str, draw: Draw) -> None:
    structure = random_graph(4, kind, bipartite=True).structure
    inputs = attention_inputs(structure, draw)
    if clamp is not None:
        # At |score| = clamp there is no derivative: keep away from it.
        q, k, _, bias, gate = inputs
        score = (sddmm(structure, q, k, channels=True) * gate).sum(-1) * D**-0.5 + bias
        near = (score.abs() - clamp).abs() < 1e-3
        assert not near.any()
        assert kind == "no_edges" or ((score.abs() > clamp).any() and (score.abs() < clamp).any())
    for x in inputs:
        x.requires_grad_()

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attention(structure, *inputs, clamp=clamp, backend=backend)
        return out, lse.masked_fill(lse == float("-inf"), 0.0)  # numerical differences of infinities are NaN

    assert gradcheck(run, inputs, fast_mode=True)


@KINDS
def test_second_derivatives_of_the_sparse_operations(kind: str, draw: Draw) -> None:
    structure = random_graph(4, kind, bipartite=True).structure
    targets, sources, edges = structure.num_targets, structure.num_sources, structure.num_edges
    a, b = draw(targets, 1, D).requires_grad_(), draw(sources, 1, D).requires_grad_()
    weights, scores = draw(edges, 1).requires_grad_(), draw(edges, 1).requires_grad_()
    gate = draw(edges, 1, D).requires_grad_()

    def softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
        weights, lse = segment_softmax(structure, scores, backend="gather")
        return weights, lse.masked_fill(lse == float("-inf"), 0.0)

    cases: dict[str, tuple[Callable[..., object], tuple[Tensor, ...]]] = {
        "sddmm": (lambda a, b: sddmm(structure, a, b, backend="gather"), (a, b)),
        "sddmm channels": (lambda a, b: sddmm(structure, a, b, channels=True, backend="gather"), (a, b)),
        "spmm": (lambda w, b: spmm(structure, w, b, backend="gather"), (weights, b)),
        "spmm channels": (lambda g, b: spmm(structure, g, b, backend="gather"), (gate, b)),
        "spmm transposed": (lambda w, a: spmm(structure.T, w, a, backend="gather"), (weights, a)),
        "segment_sum": (lambda w: segment_sum(structure, w, backend="gather").square(), (weights,)),
        "spread": (lambda a: spread(structure, a, backend="gather").square(), (a,)),
        "segment_softmax": (softmax, (scores,)),
    }
    for name, (function, inputs) in cases.items():
        assert gradcheck(function, inputs, fast_mode=True), name
        assert gradgradcheck(function, inputs, fast_mode=True), name


@FUSED
def test_attention_refuses_second_derivatives_and_the_reference_has_them(backend: str, draw: Draw) -> None:
    structure = random_graph(4, "empty_rows").structure
    q, k, v = (x.requires_grad_() for x in attention_inputs(structure, draw)[:3])

    def first_derivative(backend: str) -> Tensor:
        out, _ = csr_attention(structure, q, k, v, backend=backend)
        return torch.autograd.grad(out.square().sum(), q, create_graph=True)[0]

    with pytest.raises(RuntimeError, match="second derivatives use backend='reference'"):
        first_derivative(backend).sum().backward()
    assert gradgradcheck(lambda *x: csr_attention(structure, *x, backend="reference")[0], (q, k, v), fast_mode=True)


# --- precision ------------------------------------------------------------------------------------------------


@FUSED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("clamp", [None, 1.0], ids=["free", "clamped"])
def test_attention_is_as_precise_as_plain_code(
    dtype: torch.dtype, clamp: float | None, backend: str, draw: Draw
) -> None:
    """Output and gradients, each against float64 on the same (rounded) inputs."""
    target, source = (torch.rand(200, 200, generator=torch.Generator().manual_seed(0)) < 0.2).nonzero(as_tuple=True)
    graph = TokenGraph.from_edge_index(torch.stack([source, target]), 200)
    shapes = [(200, 4, 16)] * 3 + [(graph.num_edges, 4), (graph.num_edges, 4, 16)]
    inputs = [draw(*shape, dtype=dtype) for shape in shapes]
    slope = draw(200, 4, 16, dtype=dtype)

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(dtype))]

    def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        return eager_attention(graph, q, k, v, edge_bias=bias, edge_gate=gate, clamp=clamp)

    actual = run(lambda *x: attention(graph.structure, *x, clamp=clamp, backend=backend)[0], dtype)
    plain, exact = run(eager, dtype), run(eager, torch.float64)
    if clamp is not None and dtype != torch.float32:
        # Rounding moves scores across the clamp, where the gradient jumps: compare the values only.
        actual, plain, exact = actual[:1], plain[:1], exact[:1]
    for name, a, p, e in zip(("out", "q", "k", "v", "bias", "gate"), actual, plain, exact, strict=False):
        assert_within_budget(a, p, e, what=name)


@pytest.mark.parametrize("backend", ["reference", "gather"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_summed_in_float32(dtype: torch.dtype, backend: str) -> None:
    """4096 ones: a running sum in bfloat16 would stop at 256, one in float16 at 2048."""
    n = 4096
    edges = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)])
    structure = TokenGraph.from_edge_index(edges, num_targets=1, num_sources=n).structure
    ones = torch.ones(n, 1, 1, dtype=dtype)
    assert segment_sum(structure, ones, backend=backend).item() == n
    assert spmm(structure, ones[..., 0], ones, backend=backend).item() == n
    assert spread(structure.T, ones, backend=backend).sum() == n
    weights, lse = segment_softmax(structure, torch.zeros(n, 1, dtype=dtype), backend=backend)
    assert weights.unique().item() == 1 / n
    assert lse.dtype == torch.float32 and lse.item() == pytest.approx(8.317766, abs=1e-5)
    out, lse = csr_attention(structure, ones[:1], ones, ones, backend=backend)
    assert out.dtype == dtype and out.item() == 1
    assert lse.dtype == torch.float32
    # 4096 products of 2^-12: a running sum in either type would stop short of 1.
    a = torch.full((1, 1, n), 2.0**-6, dtype=dtype)
    product = sddmm(structure, a, a.expand(n, 1, n), backend=backend)
    assert product.dtype == dtype and (product == 1).all()


@pytest.mark.parametrize("backend", ["reference", "gather"])
def test_autocast_does_not_reach_inside_the_operations(backend: str, draw: Draw) -> None:
    structure = random_graph(4, "hub").structure
    q, k, v, bias, _ = (x.float().requires_grad_() for x in attention_inputs(structure, draw))

    def run(autocast: bool) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            weights, _ = segment_softmax(structure, sddmm(structure, q, k, backend=backend), backend=backend)
            mixed = spmm(structure, weights, v, backend=backend)
            total = segment_sum(structure, spread(structure, mixed, backend=backend), backend=backend)
            loss = (mixed + total).square().sum()
        return [mixed, total, *torch.autograd.grad(loss, (q, k, v))]

    torch.testing.assert_close(run(autocast=True), run(autocast=False))


@pytest.mark.parametrize("backend", ["reference", "gather", "numba"])
def test_attention_runs_in_the_dtype_of_autocast(backend: str, draw: Draw) -> None:
    structure = random_graph(4, "hub").structure
    tensors = [x.float().requires_grad_() for x in attention_inputs(structure, draw)]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        q, k, v, bias, gate = tensors
        return csr_attention(structure, q, k, v, edge_bias=bias, edge_gate=gate, backend=backend)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = run(*tensors)
        grads = torch.autograd.grad(out.sum(), tensors)
    cast = [x.detach().bfloat16().requires_grad_() for x in tensors]
    expected, expected_lse = run(*cast)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close((out, lse), (expected, expected_lse))
    for ours, theirs in zip(grads, torch.autograd.grad(expected.sum(), cast), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs.float())


# --- memory ---------------------------------------------------------------------------------------------------


def strided(x: Tensor) -> Tensor:
    """The same numbers, every dimension out of order and with gaps."""
    dims = tuple(reversed(range(x.dim())))
    wide = torch.full((*x.permute(dims).shape[:-1], 2 * x.shape[0]), float("nan"), dtype=x.dtype)
    wide[..., ::2] = x.permute(dims)
    return wide[..., ::2].permute(dims)


@pytest.mark.parametrize("how", ["gather", "gather-chunked", "numba"])
def test_strides_do_not_matter(how: str, draw: Draw, request: pytest.FixtureRequest) -> None:
    backend = how.partition("-")[0]
    if how == "gather-chunked":
        request.getfixturevalue("small_chunks")
    structure = random_graph(6, "hub", bipartite=True).structure
    inputs = attention_inputs(structure, draw)
    assert not strided(inputs[0]).is_contiguous()

    def run(layout: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        q, k, v, bias, gate = (layout(x) for x in leaves)
        sampled = sddmm(structure, q, k)
        weights, row_lse = segment_softmax(structure, layout(sampled))
        mixed = spmm(structure, layout(weights), v)
        channels = spmm(structure, gate, k)
        total = segment_sum(structure, gate)
        spread_out = spread(structure.T, v)
        out, lse = attention(structure, q, k, v, bias, gate, backend=backend)
        results = [sampled, weights, row_lse, mixed, channels, total, spread_out, out, lse]
        slopes = [layout(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)) for y in results]
        return [y.detach() for y in results] + list(torch.autograd.grad(results, leaves, slopes))

    for got, expected in zip(run(strided), run(lambda x: x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


@FUSED
@pytest.mark.usefixtures("nan_filled_allocations")
def test_no_memory_is_read_before_it_is_written(structure: Structure, backend: str, draw: Draw) -> None:
    leaves = [x.requires_grad_() for x in attention_inputs(structure, draw)]
    q, k, v, bias, gate = leaves
    out, lse = attention(structure, *leaves, dropout_p=0.2, dropout_seed=torch.tensor([1, 2]), backend=backend)
    weights, _ = segment_softmax(structure, sddmm(structure, q, k) + bias)
    mixed = spmm(structure, weights, v) + segment_sum(structure, weights).unsqueeze(-1)
    back = spread(structure.T, spmm(structure.T, gate, q))
    gradients = torch.autograd.grad((out.sum(), mixed.sum(), back.sum()), leaves)
    for x in (out, mixed, back, *gradients):
        assert x.isfinite().all()
    assert not lse.isnan().any()


# --- bits -----------------------------------------------------------------------------------------------------


def everything(structure: Structure, inputs: list[Tensor], backend: str = "gather") -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out, lse = attention(structure, *leaves, backend=backend)
    return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, (out.detach(), torch.ones_like(lse)))]


@FUSED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_input_gives_the_same_bits(dtype: torch.dtype, backend: str, draw: Draw) -> None:
    structure = random_graph(2, "hub").structure
    inputs = [x.to(dtype) for x in attention_inputs(structure, draw)]
    first = everything(structure, inputs, backend)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(structure, inputs, backend), strict=True))


@FUSED
@pytest.mark.parametrize("kind", ["hub", "dense", "empty_rows"])
def test_the_order_of_the_edges_does_not_change_a_bit(kind: str, backend: str, draw: Draw) -> None:
    graph = random_graph(2, kind)
    inputs = [x.float() for x in attention_inputs(graph.structure, draw)]
    first = everything(graph.structure, inputs, backend)
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(1))
    moved = TokenGraph.from_edge_index(graph.edge_index[:, order], graph.num_tokens).structure
    q, k, v, bias, gate = inputs
    second = everything(moved, [q, k, v, bias[order], gate[order]], backend)
    for name, a, b in zip(("out", "lse", "q", "k", "v", "bias", "gate"), first, second, strict=True):
        assert torch.equal(a[order] if name in ("bias", "gate") else a, b), name


def test_chunks_do_not_change_a_bit(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = random_graph(2, "hub").structure
    inputs = [x.float() for x in attention_inputs(structure, draw)]
    whole = everything(structure, inputs)
    monkeypatch.setattr("graphattn_kernels._segment._CHUNK_ELEMENTS", {"cpu": 24, "cuda": 24})
    assert all(torch.equal(a, b) for a, b in zip(whole, everything(structure, inputs), strict=True))


@FUSED
def test_int64_indices(backend: str, draw: Draw) -> None:
    """Graphs beyond 2^31 edges carry int64 arrays; the operations must not care."""
    narrow = random_graph(2, "hub").structure
    wide = Structure(*(type(v)(*(None if x is None else x.long() for x in v)) for v in narrow))
    inputs = attention_inputs(narrow, draw)
    for a, b in zip(everything(narrow, inputs, backend), everything(wide, inputs, backend), strict=True):
        assert torch.equal(a, b)
    q, k, v, bias, _ = inputs
    assert torch.equal(sddmm(narrow, q, k), sddmm(wide, q, k))
    assert torch.equal(spmm(narrow, bias, v), spmm(wide, bias, v))
    assert torch.equal(segment_softmax(narrow, bias)[0], segment_softmax(wide, bias)[0])


@FUSED
def test_threads_do_not_change_a_bit(backend: str, draw: Draw) -> None:
    """On a graph large enough to be shared among threads."""
    random = torch.Generator().manual_seed(0)
    structure = TokenGraph.from_edge_index(torch.randint(400, (2, 40_000), generator=random), 400).structure
    inputs = [draw(400, 4, 8, dtype=torch.float32) for _ in range(3)]
    inputs += [draw(40_000, 4, dtype=torch.float32), draw(40_000, 4, 8, dtype=torch.float32)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(everything(structure, inputs, backend))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
