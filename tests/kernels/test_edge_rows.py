"""Rows that edges add to keys and values: one operation, against attention over a source of its own for each edge."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn_kernels import Structure, _schedule, csr_attention
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError
from graphattn_kernels.structure import flat

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
BACKENDS = [
    "reference",
    "gather",
    pytest.param("numba", marks=pytest.mark.skipif(CUDA, reason="on the CPU only")),
    pytest.param("triton", marks=[pytest.mark.triton, pytest.mark.skipif(not (CUDA or INTERPRETED), reason="CUDA")]),
]
HUB = [[*range(20), 3, 3, 7], [0] * 20 + [1, 1, 5]]  # duplicates, and targets without an edge
GRAPHS = {"hub": (HUB, 20, 7), "square": ([[0, 1, 2, 4, 0, 3], [1, 0, 0, 2, 4, 3]], 5, 5), "none": ([[], []], 3, 4)}


def dense(edges: Tensor, inputs: list[Tensor], bias: Tensor | None, clamp: float | None) -> Tensor:
    """Row by row, as the formula says."""
    q, k, v, rows = inputs
    source, target = edges
    out = []
    for t in range(q.shape[0]):
        mine = (target == t).nonzero()[:, 0]
        if mine.numel() == 0:
            out.append(v.new_zeros(v.shape[1:]) + 0 * q[t])
            continue
        keys, values = k[source[mine]] + rows[mine], v[source[mine]] + rows[mine]
        scores = (q[t] * keys).sum(-1) * q.shape[2] ** -0.5
        scores = scores if bias is None else scores + bias[mine]
        scores = scores if clamp is None else scores.clamp(-clamp, clamp)
        out.append((scores.softmax(0).unsqueeze(-1) * values).sum(0))
    return torch.stack(out)


def case(
    name: str, heads: int, width: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Structure, list[Tensor]]:
    listed, sources, targets = GRAPHS[name]
    edges = torch.tensor(listed, dtype=torch.int64, device=DEVICE)
    structure = TokenGraph.from_edge_index(edges, num_targets=targets, num_sources=sources).structure
    generator = torch.Generator().manual_seed(width)
    sizes = targets, sources, sources, edges.shape[1]
    inputs = [torch.randn(n, heads, width, generator=generator, dtype=torch.float64) for n in sizes]
    return edges, structure, [x.to(DEVICE, dtype).requires_grad_() for x in inputs]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("graph", "heads", "width", "options", "chunk"),
    [
        ("hub", 1, 1, {"edge_bias": True, "clamp": 0.7}, 256),
        ("hub", 3, 5, {"edge_bias": True, "clamp": 0.7}, 4),
        ("square", 4, 16, {}, 256),
        ("none", 3, 5, {}, 256),
    ],
)
def test_values_and_gradients(
    backend: str,
    graph: str,
    heads: int,
    width: int,
    options: dict[str, Any],
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_schedule, "chunk_size", lambda num_edges: chunk)  # 4: Triton cuts the hub into parts
    edges, structure, inputs = case(graph, heads, width)
    bias = torch.linspace(-1, 1, edges.shape[1] * heads, dtype=torch.float64, device=DEVICE).view(-1, heads)
    bias = bias.requires_grad_() if "edge_bias" in options else None
    clamp = options.get("clamp")
    leaves = [*inputs, *([] if bias is None else [bias])]
    q, k, v, rows = inputs
    found, _ = csr_attention(structure, q, k, v, edge_rows=rows, edge_bias=bias, clamp=clamp, backend=backend)
    expected = dense(edges, inputs, bias, clamp)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    slope = torch.cos(torch.arange(found.numel(), device=DEVICE, dtype=torch.float64)).view_as(found)
    grads = torch.autograd.grad(found, leaves, slope, allow_unused=True)
    wanted = torch.autograd.grad(expected, leaves, slope, allow_unused=True)
    for mine, other, leaf in zip(grads, wanted, leaves, strict=True):
        other = torch.zeros_like(leaf) if other is None else other
        torch.testing.assert_close(torch.zeros_like(leaf) if mine is None else mine, other, rtol=1e-8, atol=1e-9)


@pytest.mark.skipif(CUDA, reason="on the CPU only")
@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "in order"])
@pytest.mark.parametrize(("heads", "width"), [(3, 5), (4, 16)])
def test_numba_with_cut_hubs_and_threads(
    heads: int, width: int, numbered: bool, monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    """Long rows of targets and of sources, with dropout: equal to gather, and the same bits with every number of
    threads. Edges in the order of the targets have no numbers in the graph."""
    _numba = pytest.importorskip("graphattn_kernels._numba")
    monkeypatch.setattr(_numba, "_LONGEST", 70)  # more than a block of edges
    monkeypatch.setattr(_numba, "_SERIAL", 0)
    edges = torch.randint(40, (2, 900), generator=torch.Generator().manual_seed(1))
    edges[1, :200], edges[0, -200:] = 5, 7
    if numbered:
        structure = TokenGraph.from_edge_index(edges, num_tokens=41).structure
        assert structure.by_target.edge_id is not None
    else:
        edges = edges[:, (41 * edges[1] + edges[0]).argsort()]
        rowptr = torch.searchsorted(edges[1].contiguous(), torch.arange(42)).int()
        structure = TokenGraph.from_csr(rowptr, edges[0].int(), num_sources=41).structure
        assert structure.by_target.edge_id is None
    inputs = [draw(n, heads, width).requires_grad_() for n in (41, 41, 41, 900)]
    q, k, v, rows = inputs
    options = {"clamp": 1.5, "dropout_p": 0.3, "dropout_seed": torch.tensor([3, 5])}

    def everything(backend: str) -> list[Tensor]:
        out, lse = csr_attention(structure, q, k, v, edge_rows=rows, backend=backend, **options)
        slope = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view_as(out)
        total = (out * slope).sum() + lse[:40].square().sum()  # nobody asks at the last target: -inf
        return [out.detach(), lse.detach(), *torch.autograd.grad(total, inputs)]

    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(everything("numba"))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], everything("gather"), rtol=1e-9, atol=1e-9)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_drops_the_same_edges_everywhere(backend: str) -> None:
    """With the gradient: what is dropped has none."""
    _, structure, inputs = case("hub", 2, 4)
    options = {"dropout_p": 0.5, "dropout_seed": torch.tensor([3, 5], device=DEVICE)}
    results = []
    for name in (backend, "gather"):
        q, k, v, rows = inputs
        out, lse = csr_attention(structure, q, k, v, edge_rows=rows, backend=name, **options)
        results.append([out, lse, *torch.autograd.grad(out.square().sum() + lse[:2].sum(), inputs)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    assert any((row == 0).all() for row in results[0][0][:2].flatten(0, 1)) or results[0][0].abs().sum() > 0
    plain, _ = csr_attention(structure, *inputs[:3], edge_rows=inputs[3], backend=backend)
    assert not torch.allclose(plain, results[0][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_types(backend: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and backend == "triton" and not CUDA:
        pytest.skip("NumPy, which interprets, has no bfloat16")
    edges, structure, inputs = case("hub", 2, 8, dtype)
    q, k, v, rows = inputs
    found, _ = csr_attention(structure, q, k, v, edge_rows=rows, backend=backend)
    assert found.dtype == dtype
    grads = torch.autograd.grad(found.sum(), inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = dense(edges, wide, None, None)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for mine, other in zip(grads, torch.autograd.grad(expected.sum(), wide), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.triton
@pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs CUDA or TRITON_INTERPRET=1")
def test_opcheck() -> None:
    _, structure, (q, k, v, rows) = case("hub", 2, 4)
    given = (*flat(structure), q, k, v, None, None, rows, None, None, 0.5, None, None, 0.0, False, "triton")
    utils = ("test_schema", "test_faketensor")  # the rest, which takes a minute here, does not know of edge rows
    torch.library.opcheck(torch.ops.graphattn.csr_attention.default, given, test_utils=utils)


def test_bad_rows_are_refused() -> None:
    _, structure, (q, k, v, rows) = case("square", 2, 4)
    with pytest.raises(ArgumentError, match="edge_rows must have one row for each edge"):
        csr_attention(structure, q, k, v, edge_rows=rows[:-1])
    with pytest.raises(ArgumentError, match=r"edge_rows must be \[E, H, D\]"):
        csr_attention(structure, q, k, v, edge_rows=rows[:, :1])
    with pytest.raises(ArgumentError, match=r"edge_rows must be \[E, H, D\]"):
        csr_attention(structure, q, k, v[:, :, :2], edge_rows=rows)
    with pytest.raises(ArgumentTypeError, match="edge_rows must have the dtype"):
        csr_attention(structure, q, k, v, edge_rows=rows.float())
    for options in ({"edge_gate": rows}, {"negative_slope": 0.2}, {"need_product": True}):
        with pytest.raises(ArgumentError, match="edge_rows need the dot score"):
            csr_attention(structure, q, k, v, edge_rows=rows, **options)
