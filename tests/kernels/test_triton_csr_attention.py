"""The Triton kernels against the float64 reference, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph
from graphattn_kernels import Structure, View, csr_attention
from graphattn_kernels._random import dropout_scale
from graphattn_kernels.backends import choose, status
from graphattn_kernels.errors import BackendError

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs CUDA or TRITON_INTERPRET=1", allow_module_level=True)

from graphattn_kernels import _schedule as schedule
from graphattn_kernels import _schedule_triton
from graphattn_kernels._triton import split

pytestmark = pytest.mark.triton
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHUNK = 5


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with more than a handful of edges are hubs."""
    monkeypatch.setattr(schedule, "chunk_size", lambda num_edges: CHUNK)


def make_graph(name: str) -> TokenGraph:
    """Small graphs that between them have every awkward feature; ``hubs`` has them all."""
    draw = torch.Generator().manual_seed(7)

    def pick(high: int, size: int) -> Tensor:
        return torch.randint(0, high, (size,), generator=draw)

    if name == "hubs":  # bipartite; target 2 and source 1 are hubs; targets 6, 7 are empty; duplicates
        source = torch.cat([pick(5, 12), pick(5, 17), torch.ones(11, dtype=torch.long)])
        target = torch.cat([pick(6, 12), torch.full((17,), 2), pick(6, 11)])
        edges, targets, sources = torch.stack([source, target]), 8, 5
        edges = edges[:, torch.randperm(edges.shape[1], generator=draw)]
    elif name == "one_token":
        edges, targets, sources = torch.zeros(2, 3, dtype=torch.long), 1, 1
    elif name == "no_edges":
        edges, targets, sources = torch.zeros(2, 0, dtype=torch.long), 3, 2
    elif name == "no_tokens":
        edges, targets, sources = torch.zeros(2, 0, dtype=torch.long), 0, 0
    else:  # "batch": members of equal degree, none a hub
        edges = torch.cat([torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]) + 4 * i for i in range(3)], 1)
        targets = sources = 12
    return TokenGraph.from_edge_index(edges.to(DEVICE), num_targets=targets, num_sources=sources)


def as_int64(structure: Structure) -> Structure:
    """The same arrays in int64."""
    views = (View(*(None if x is None else x.long() for x in view)) for view in structure)
    return Structure(*views)


def make_inputs(
    graph: TokenGraph, heads: int, width: int, v_width: int, *, bias: bool, gate: bool
) -> dict[str, Tensor | None]:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(DEVICE)

    return {
        "q": normal(graph.num_targets, heads, width),
        "k": normal(graph.num_sources, heads, width),
        "v": normal(graph.num_sources, heads, v_width),
        "edge_bias": normal(graph.num_edges, heads) if bias else None,
        "edge_gate": normal(graph.num_edges, heads, width) if gate else None,
    }


def values_and_gradients(
    structure: Structure,
    inputs: dict[str, Tensor | None],
    backend: str,
    dtype: torch.dtype,
    grad_dtype: torch.dtype = torch.float64,
    **options: Any,
) -> list[Tensor]:
    """Output, finite part of lse, and the gradient of every input through both, from gradients in ``grad_dtype``."""
    given = {n: x.to(dtype).requires_grad_() for n, x in inputs.items() if x is not None}
    out, lse = csr_attention(structure, backend=backend, **given, **options)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(5)
    grad_out = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(DEVICE, grad_dtype)
    grad_lse = torch.randn(lse.shape, generator=draw, dtype=torch.float64).to(DEVICE)
    finite = lse.masked_fill(lse == float("-inf"), 0.0)
    loss = (out * grad_out.to(dtype)).double().sum() + (finite * grad_lse.to(lse.dtype)).double().sum()
    return [out.detach(), finite.detach(), *torch.autograd.grad(loss, list(given.values()))]


def assert_like_reference(
    graph: TokenGraph,
    inputs: dict[str, Tensor | None],
    dtype: torch.dtype,
    tolerance: float,
    structure: Structure | None = None,
    **options: Any,
) -> list[Tensor]:
    # The reference sees what the kernel sees: inputs rounded to the dtype.
    rounded = {n: None if x is None else x.to(dtype).double() for n, x in inputs.items()}
    ours = values_and_gradients(structure or graph.structure, rounded, "triton", dtype, dtype, **options)
    theirs = values_and_gradients(graph.structure, rounded, "reference", torch.float64, dtype, **options)
    names = ["out", "lse", *(f"gradient of {n}" for n, x in inputs.items() if x is not None)]
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all(), name
        error = (a.double() - b).norm() / b.norm().clamp(min=1.0)
        assert error < tolerance, f"{name}: {error:.1e}"
    return ours


# Rows of a covering array: every pair of values of any two columns stands in some row.
OPTIONS = [
    # bias, gate, clamp, dropout, int64, (heads, D, D_v)
    (False, False, None, 0.0, False, (2, 4, 4)),
    (True, True, 0.8, 0.6, True, (2, 4, 4)),
    (True, False, None, 0.6, False, (3, 5, 7)),
    (False, True, 0.8, 0.0, True, (3, 5, 7)),
    (True, False, 0.8, 0.0, False, (1, 10, 3)),
    (False, True, None, 0.6, True, (1, 10, 3)),
    (True, True, None, 0.0, False, (2, 4, 4)),
    (False, False, 0.8, 0.6, True, (3, 5, 7)),
]


def test_options_cover_every_pair() -> None:
    columns = list(zip(*OPTIONS, strict=True))
    for a, b in itertools.combinations(columns[:4], 2):
        assert set(zip(a, b, strict=True)) == set(itertools.product(set(a), set(b)))


@pytest.mark.parametrize(("bias", "gate", "clamp", "dropout_p", "wide", "shape"), OPTIONS)
def test_every_option_on_a_graph_with_hubs(
    bias: bool, gate: bool, clamp: float | None, dropout_p: float, wide: bool, shape: tuple[int, int, int]
) -> None:
    graph = make_graph("hubs")
    inputs = make_inputs(graph, *shape, bias=bias, gate=gate)
    seed = torch.tensor([2**40 + 3, -5], device=DEVICE) if dropout_p else None
    structure = as_int64(graph.structure) if wide else graph.structure
    assert_like_reference(
        graph, inputs, torch.float64, 1e-13, structure, clamp=clamp, dropout_p=dropout_p, dropout_seed=seed
    )


@pytest.mark.parametrize("name", ["one_token", "no_edges", "no_tokens", "batch"])
def test_other_graphs(name: str) -> None:
    graph = make_graph(name)
    inputs = make_inputs(graph, 2, 3, 4, bias=True, gate=False)
    assert_like_reference(graph, inputs, torch.float64, 1e-13, scale=0.7)


# Error of one rounding of the output or gradient, times a small number for sums of a few such terms.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 2e-2)])
def test_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    graph = make_graph("hubs")
    inputs = make_inputs(graph, 2, 8, 8, bias=True, gate=False)
    assert_like_reference(graph, inputs, dtype, tolerance, clamp=2.0)


def test_targets_without_a_weight_give_zero(nan_filled_allocations: None) -> None:
    """Empty rows, and rows all of whose scores are -inf, a hub among them, in memory that starts as NaN."""
    graph = make_graph("hubs")
    inputs = make_inputs(graph, 2, 4, 4, bias=True, gate=False)
    assert inputs["edge_bias"] is not None
    silent = (graph.edge_index[1] == 2) | (graph.edge_index[1] == 0)
    inputs["edge_bias"][silent] = float("-inf")
    out, lse = csr_attention(graph.structure, backend="triton", **inputs)  # type: ignore[arg-type]
    silent_targets = [0, 2, 6, 7]
    assert (out[silent_targets] == 0).all()
    assert (lse[silent_targets] == float("-inf")).all()
    assert_like_reference(graph, inputs, torch.float64, 1e-13)


def test_dropout_mask_is_that_of_the_other_backends() -> None:
    """One source with value 1 and uniform scores: each edge's share shows whether it was dropped."""
    edges, heads = 12, 3
    graph = TokenGraph.from_edge_index(torch.arange(edges, device=DEVICE).flip(0).repeat(2, 1), edges)
    seed = torch.tensor([2**62 - 1, -(2**33) + 1], device=DEVICE)
    q = torch.zeros(edges, heads, 4, device=DEVICE)
    for p in (0.3, 0.7):
        out, _ = csr_attention(graph.structure, q, q, q + 1, dropout_p=p, dropout_seed=seed, backend="triton")
        expected = dropout_scale(seed, torch.arange(edges, device=DEVICE), heads, p, torch.float32).flip(0)
        assert 0 < (expected == 0).sum() < expected.numel()
        torch.testing.assert_close(out, expected[..., None].expand_as(out), rtol=1e-6, atol=0.0)


def test_the_clamp_bound_passes_a_gradient() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0, 1, 2], [0, 0, 0]], device=DEVICE), 3)
    zero = torch.zeros(3, 1, 4, device=DEVICE)
    v = torch.randn(3, 1, 4, device=DEVICE)
    bias = torch.tensor([[2.0], [2.5], [-2.0]], device=DEVICE, requires_grad=True)
    out, _ = csr_attention(graph.structure, zero, zero, v, edge_bias=bias, clamp=2.0, backend="triton")
    out.square().sum().backward()
    assert bias.grad is not None
    assert (bias.grad[[0, 2]] != 0).all() and bias.grad[1] == 0


def test_rows_of_a_packed_projection_and_an_expanded_bias() -> None:
    graph = make_graph("hubs")
    packed = torch.randn(8, 3, 2, 4, dtype=torch.float64, device=DEVICE)
    q, k, v = packed[:, 0], packed[:5, 1], packed[:5, 2]
    bias = torch.randn(graph.num_edges, 1, dtype=torch.float64, device=DEVICE, requires_grad=True)
    grads = []
    for backend in ("triton", "reference"):
        out, _ = csr_attention(graph.structure, q, k, v, edge_bias=bias, backend=backend)
        grads.append([out.detach(), *torch.autograd.grad(out.square().sum(), bias)])
    torch.testing.assert_close(grads[0], grads[1])


def test_the_same_input_gives_the_same_bits() -> None:
    graph = make_graph("hubs")
    inputs = make_inputs(graph, 2, 4, 4, bias=True, gate=False)
    first, second = (values_and_gradients(graph.structure, inputs, "triton", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("make", [schedule.make_schedule, _schedule_triton.make_schedule], ids=["torch", "triton"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 300])
@pytest.mark.parametrize("name", ["hubs", "one_token", "no_edges", "no_tokens", "batch"])
def test_a_schedule_holds_every_edge_once(name: str, chunk: int, make: Callable[..., schedule.Schedule]) -> None:
    view = make_graph(name).structure.by_target
    plan = make(view.ptr, view.num_edges, chunk)
    owner = torch.full((view.num_edges,), -1)
    rows = []
    for i, (row, begin, end) in enumerate(zip(*(x.tolist() for x in plan[:3]), strict=True)):
        assert 0 <= end - begin <= chunk
        if row < 0:
            assert begin == end
            continue
        assert (owner[begin:end] == -1).all()
        owner[begin:end] = row
        if i >= plan.num_parts:
            rows.append(row)
    assert torch.equal(owner, view.owner.cpu().long())
    lengths = (plan.end - plan.begin)[plan.num_parts :]
    assert (lengths.diff() <= 0).all() or plan.hubs is not None
    hubs = []
    if plan.hubs is not None:
        count = int(plan.hubs.num_hubs)
        assert plan.num_parts >= int(plan.hubs.part_ptr[-1])
        hubs = plan.hubs.row[:count].tolist()
        for hub in range(count):
            parts = slice(int(plan.hubs.part_ptr[hub]), int(plan.hubs.part_ptr[hub + 1]))
            assert (plan.row[parts] == hubs[hub]).all()
    assert sorted(rows + hubs) == list(range(view.num_owners))


def test_a_schedule_is_made_once_for_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make_graph("hubs")
    made = []
    make = schedule.make_schedule
    monkeypatch.setattr(schedule, "make_schedule", lambda *a: made.append(a) or make(*a))
    inputs = make_inputs(graph, 1, 4, 4, bias=False, gate=False)
    for _ in range(2):
        values_and_gradients(graph.structure, inputs, "triton", torch.float32)
    assert len(made) == 2  # one for each view


def test_room_for_hubs_is_given_up_where_there_are_none() -> None:
    few, many = make_graph("batch").structure.by_target, make_graph("hubs").structure.by_target
    assert schedule.make_schedule(few.ptr, few.num_edges, CHUNK).hubs is not None
    if DEVICE == "cuda":
        schedule.schedule_of(few)
        torch.cuda.synchronize()
    plan = schedule.schedule_of(few)
    assert plan.hubs is None and plan.num_parts == 0 and plan.row.shape[0] == few.num_owners
    assert schedule.schedule_of(many).hubs is not None


def test_gradcheck() -> None:
    graph = TokenGraph.from_edge_index(torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0]], device=DEVICE), 2)
    q, k, v = (torch.randn(2, 1, 2, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(3))

    def f(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return csr_attention(graph.structure, q, k, v, backend="triton")

    assert torch.autograd.gradcheck(f, (q, k, v))


def test_a_number_becomes_two_float32() -> None:
    for x in (0.1, 3.0, 1 / 3, 1e-20):
        high, low = split(x)
        assert high == torch.tensor(high).item()
        assert abs(torch.tensor(high).double() + torch.tensor(low).double() - x) <= abs(x) * 2.0**-47


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="CUDA"):
        choose("triton", torch.device("cpu"))
    with pytest.raises(BackendError, match="no Triton implementation"):
        choose("triton")
    assert choose("auto", torch.device("cpu")) == "numba"
    assert choose("auto", torch.device("cuda")) == "triton"
    if not torch.cuda.is_available():
        assert "CUDA" in (status()["triton"] or "")


def test_too_many_channels() -> None:
    graph = make_graph("one_token")
    x = torch.randn(1, 1, 300, device=DEVICE)
    with pytest.raises(BackendError, match="256"):
        csr_attention(graph.structure, x, x, x, backend="triton")
    csr_attention(graph.structure, x, x, x)
