"""The compiled backends of the sparse operations: values, gradients of any order, bits, memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from graphattn.graph import TokenGraph
from graphattn.testing import assert_backends_equal, assert_within_budget, random_graph, require_or_skip
from graphattn_kernels import Structure, sddmm, segment_softmax, segment_sum, spmm, spread
from graphattn_kernels.errors import ArgumentError
from graphattn_kernels.structure import flat

Draw = Callable[..., Tensor]
Operation = Callable[..., "Tensor | tuple[Tensor, ...]"]
KINDS = ("hub", "empty_rows", "duplicates", "no_edges", "one_token", "batch")


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    name = request.param
    require_or_skip(name)
    if name == "triton" and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs CUDA or TRITON_INTERPRET=1")
    return name


@pytest.fixture
def device(backend: str) -> str:
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _short_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rows of more than a handful of edges count as hubs, and every call is shared among threads."""
    backend = request.getfixturevalue("backend") if "backend" in request.fixturenames else "numba"
    if backend == "triton":
        from graphattn_kernels import _schedule
        from graphattn_kernels.sddmm.impl import triton as edge_kernels

        monkeypatch.setattr(_schedule, "chunk_size", lambda num_edges: 3)
        monkeypatch.setattr(edge_kernels, "_STEPS", 2)  # fewer empty ones
    else:
        from graphattn_kernels import _numba, _sparse_numba

        monkeypatch.setattr(_numba, "_LONGEST", 3)
        monkeypatch.setattr(_numba, "_SERIAL", 0)
        monkeypatch.setattr(_sparse_numba, "_SERIAL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# The operations by name: the function and the shapes of its tensors in T, S, E, H and D.
OPERATIONS: dict[str, tuple[Operation, tuple[str, ...]]] = {
    "segment_sum": (segment_sum, ("EHD",)),
    "segment_sum-narrow": (segment_sum, ("E",)),
    "spread": (spread, ("THD",)),
    "sddmm": (sddmm, ("THD", "SHD")),
    "sddmm-channels": (lambda *x, backend: sddmm(*x, channels=True, backend=backend), ("THD", "SHD")),
    "spmm": (spmm, ("EH", "SHD")),
    "spmm-channels": (spmm, ("EHD", "SHD")),
    "segment_softmax": (segment_softmax, ("EH",)),
}
BACKENDS = pytest.mark.parametrize(
    "backend", ["numba", pytest.param("triton", marks=pytest.mark.triton)], indirect=True
)


def cases(*names: str, quick: Iterable[str] = (), values: Iterable[Any] = ()) -> pytest.MarkDecorator:
    """Operations (all, unless named) with both backends, and with ``values`` of one more argument where it is named.

    Triton's interpreter is slow: with Triton, operations that are not ``quick`` and values but the first are ``slow``.
    """
    rows = []
    for backend, name, (n, value) in itertools.product(
        ("numba", "triton"), names or OPERATIONS, enumerate(values or (None,))
    ):
        marks = [pytest.mark.triton] if backend == "triton" else []
        if marks and (n or name not in quick) and not torch.cuda.is_available():
            marks.append(pytest.mark.slow)
        given = [value] if values else []
        rows.append(pytest.param(backend, name, *given, marks=marks, id="-".join(map(str, (backend, name, *given)))))
    arguments = ["backend", "name", *(("value",) if values else ())]
    return pytest.mark.parametrize(arguments, rows, indirect=["backend"])


def inputs(name: str, structure: Structure, draw: Draw, heads: int, width: int, device: str) -> list[Tensor]:
    """Normal numbers for the tensors of an operation."""
    sizes = {
        "T": structure.num_targets,
        "S": structure.num_sources,
        "E": structure.num_edges,
        "H": heads,
        "D": width,
    }
    return [draw(*(sizes[letter] for letter in shape)).to(device) for shape in OPERATIONS[name][1]]


def everything(name: str, structure: Structure, tensors: list[Tensor], backend: str) -> list[Tensor]:
    """Results, gradients, and gradients of the gradients' squares."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = OPERATIONS[name][0](structure, *leaves, backend=backend)
    outs = out if isinstance(out, tuple) else (out,)
    finite = [y.masked_fill(y == float("-inf"), 0.0) for y in outs]
    slopes = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y) for y in finite]
    first = torch.autograd.grad([y + y.square() for y in finite], leaves, slopes, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, materialize_grads=True)
    return [x.detach() for x in (*outs, *first, *second)]


# --- values and derivatives -----------------------------------------------------------------------------------


@cases(quick=OPERATIONS, values=KINDS)
def test_equals_the_reference(name: str, value: str, backend: str, device: str, draw: Draw) -> None:
    graph = random_graph(3, value, bipartite=True, device=device).structure
    for structure in (graph, graph.T) if backend == "numba" else (graph,):  # the gradients use the transpose
        assert_backends_equal(
            lambda *x, backend, structure=structure: OPERATIONS[name][0](structure, *x, backend=backend),
            *inputs(name, structure, draw, 3, 5, device),
            backend=backend,
        )


@cases(quick=("segment_sum", "sddmm", "spmm"), values=[(1, 300), (1, 1), (8, 16), (70, 2), (3, 0)])
def test_any_size(name: str, value: tuple[int, int], backend: str, device: str, draw: Draw) -> None:
    """More channels than a program holds, narrow rows, wide loads, many heads, and no channel."""
    heads, width = value
    structure = random_graph(3, "empty_rows", device=device).structure
    assert_backends_equal(
        lambda *x, backend: OPERATIONS[name][0](structure, *x, backend=backend),
        *inputs(name, structure, draw, heads, width, device),
        backend=backend,
    )


@cases()
def test_edges_that_are_sorted_already(name: str, backend: str, device: str, draw: Draw) -> None:
    """Such a graph has no permutation of edges; its transpose has one on the other side."""
    graph = random_graph(3, "hub")
    structure = TokenGraph.from_csr(graph.rowptr.to(device), graph.col.to(device)).structure
    assert structure.by_target.edge_id is None
    for view in (structure, structure.T):
        got, expected = (
            everything(name, view, inputs(name, view, draw_again(), 2, 4, device), b) for b in (backend, "reference")
        )
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def draw_again() -> Draw:
    random = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=random)


@cases(quick=("spmm", "segment_softmax"))
def test_second_derivatives(name: str, backend: str, device: str, draw: Draw) -> None:
    source, target = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 2, 0, 0, 2]])  # a cut hub, an empty row, duplicates
    structure = TokenGraph.from_edge_index(
        torch.stack([source, target]).to(device), num_targets=3, num_sources=2
    ).structure

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = OPERATIONS[name][0](structure, *tensors, backend=backend)
        outs = out if isinstance(out, tuple) else (out,)
        # Squares: most of the operations are linear. Differences of infinities are NaN.
        return tuple(y.masked_fill(y == float("-inf"), 0.0).square() for y in outs)

    tensors = [x.requires_grad_() for x in inputs(name, structure, draw, 1, 2, device)]
    assert gradcheck(run, tensors, fast_mode=True)
    assert gradgradcheck(run, tensors, fast_mode=True)


@BACKENDS
def test_rows_without_a_finite_score(backend: str, device: str, draw: Draw) -> None:
    """Weights 0, log-sum-exp -inf and gradient 0, as without an edge; a cut row and a whole one."""
    graph = random_graph(2, "hub", device=device)
    structure = graph.structure
    scores = 1e4 * draw(graph.num_edges, 3).to(device)  # and large scores do not overflow
    target = graph.edge_index[1]
    short = int(graph.in_degree.argmin())
    scores[(target == 2) | (target == short)] = float("-inf")
    got, expected = (everything("segment_softmax", structure, [scores], b) for b in (backend, "reference"))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert (got[1][[2, short]] == float("-inf")).all() and (got[0][target == 2] == 0).all()


@cases("sddmm", "spmm", "segment_softmax", quick=("segment_softmax",))
def test_not_a_number_stays_visible(name: str, backend: str, device: str, draw: Draw) -> None:
    structure = random_graph(2, "dense", device=device).structure
    tensors = inputs(name, structure, draw, 2, 4, device)
    tensors[0][1] = float("nan")
    # Not the reference, whose matrix product takes NaN to every row.
    got, expected = (OPERATIONS[name][0](structure, *tensors, backend=b) for b in (backend, "gather"))
    got, expected = (x[0] if isinstance(x, tuple) else x for x in (got, expected))
    assert expected.isnan().any() and not expected.isnan().all()
    assert torch.equal(got.isnan(), expected.isnan())


# --- precision ------------------------------------------------------------------------------------------------


def plain(name: str, source: Tensor, target: Tensor, num_targets: int, *x: Tensor) -> Tensor:
    """The operation as one would write it by hand, every step in the dtype of the inputs."""

    def total(rows: Tensor) -> Tensor:
        return rows.new_zeros(num_targets, *rows.shape[1:]).index_add(0, target, rows)

    kind = name.partition("-")[0]
    if kind == "segment_sum":
        return total(x[0])
    if kind == "spread":
        return x[0][target]
    if kind == "sddmm":
        product = x[0][target] * x[1][source]
        return product if name.endswith("channels") else product.sum(-1)
    if kind == "spmm":
        return total((x[0] if x[0].dim() == 3 else x[0].unsqueeze(-1)) * x[1][source])
    index = target[:, None].expand_as(x[0])
    top = x[0].new_full((num_targets, x[0].shape[1]), float("-inf")).scatter_reduce(0, index, x[0].detach(), "amax")
    weight = (x[0] - top[target]).exp()
    return weight / total(weight)[target]


@cases(quick=("sddmm", "spmm", "segment_softmax"), values=[torch.bfloat16, torch.float16, torch.float32])
def test_precision_is_that_of_plain_code(name: str, value: torch.dtype, backend: str, device: str, draw: Draw) -> None:
    """Values and gradients against float64 on the same (rounded) inputs."""
    tokens, dtype = 40 if backend == "numba" else 12, value
    mask = torch.rand(tokens, tokens, generator=torch.Generator().manual_seed(0)) < 0.4
    target, source = (x.to(device) for x in mask.nonzero(as_tuple=True))
    structure = TokenGraph.from_edge_index(torch.stack([source, target]), tokens).structure
    tensors = [x.to(dtype) for x in inputs(name, structure, draw, 2, 8, device)]

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
        out = function(*leaves)
        slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=device).view_as(out)
        slope = slope.to(tensors[0].dtype).to(dtype)
        return [out.detach(), *torch.autograd.grad(out, leaves, slope)]

    def compiled(*x: Tensor) -> Tensor:
        out = OPERATIONS[name][0](structure, *x, backend=backend)
        return out[0] if isinstance(out, tuple) else out

    actual = run(compiled, dtype)
    eager, exact = (run(lambda *x: plain(name, source, target, tokens, *x), d) for d in (dtype, torch.float64))
    for i, (a, e, x) in enumerate(zip(actual, eager, exact, strict=True)):
        assert_within_budget(a, e, x, what=f"result {i}")


@BACKENDS
def test_half_types_are_summed_in_float32(backend: str, device: str) -> None:
    """4096 ones: a running sum in bfloat16 would stop at 256."""
    n = 4096 if backend == "numba" else 300
    edges = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)])
    structure = TokenGraph.from_edge_index(edges.to(device), num_targets=1, num_sources=n).structure
    ones = torch.ones(n, 1, 1, dtype=torch.bfloat16, device=device)
    expected = torch.tensor(n).to(torch.bfloat16)
    assert segment_sum(structure, ones, backend=backend).item() == expected
    assert spmm(structure, ones[..., 0], ones, backend=backend).item() == expected
    _, lse = segment_softmax(structure, torch.zeros(n, 1, dtype=torch.bfloat16, device=device), backend=backend)
    assert lse.dtype == torch.float32
    assert lse.item() == pytest.approx(torch.tensor(float(n)).log().item(), rel=1e-6)


# --- memory and bits ------------------------------------------------------------------------------------------


@cases(quick=("sddmm-channels", "segment_softmax"), values=["hub", "empty_rows", "no_edges"])
@pytest.mark.usefixtures("nan_filled_allocations")
def test_every_result_is_written(name: str, value: str, backend: str, device: str, draw: Draw) -> None:
    structure = random_graph(3, value, bipartite=True, device=device).structure
    for x in everything(name, structure, inputs(name, structure, draw, 2, 3, device), backend):
        assert not x.isnan().any()


@cases(quick=("segment_softmax",))
def test_layout_and_width_of_indices_do_not_change_a_bit(name: str, backend: str, device: str, draw: Draw) -> None:
    """Slices of packed tensors, transposed ones, int64 indices, and a second run."""
    narrow = random_graph(6, "hub", bipartite=True, device=device).structure
    wide = Structure(*(type(v)(*(None if x is None else x.long() for x in v)) for v in narrow))
    tensors = [x.float() for x in inputs(name, narrow, draw, 2, 4, device)]
    expected = everything(name, narrow, tensors, backend)
    packed = [torch.stack([x, x + 1], 1)[:, 0] for x in tensors]
    turned = [x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))) for x in tensors]
    for structure, layout in ((narrow, tensors), (wide, tensors), (narrow, packed), (narrow, turned)):
        assert all(map(torch.equal, everything(name, structure, layout, backend), expected))


@cases("sddmm", "spmm", quick=("sddmm", "spmm"))
def test_one_row_for_all_heads(name: str, backend: str, device: str, draw: Draw) -> None:
    """The sources' rows, expanded over heads."""
    structure = random_graph(3, "hub", device=device).structure
    first, rows = inputs(name, structure, draw, 3, 4, device)
    row = rows[:, :1]
    function = OPERATIONS[name][0]
    got = function(structure, first, row.expand(-1, 3, -1), backend=backend)
    torch.testing.assert_close(got, function(structure, first, row.repeat(1, 3, 1), backend=backend), rtol=0, atol=0)


@cases(quick=("sddmm", "spmm", "segment_softmax"))
def test_the_order_of_the_edges_does_not_change_a_bit(name: str, backend: str, device: str, draw: Draw) -> None:
    graph = random_graph(2, "hub", device=device)
    order = torch.randperm(graph.num_edges, generator=torch.Generator().manual_seed(1)).to(device)
    moved = TokenGraph.from_edge_index(graph.edge_index[:, order], graph.num_tokens).structure
    tensors = [x.float() for x in inputs(name, graph.structure, draw, 2, 4, device)]
    shapes = OPERATIONS[name][1]
    again = [x[order] if shape[0] == "E" else x for x, shape in zip(tensors, shapes, strict=True)]
    function = OPERATIONS[name][0]
    results = [function(s, *x, backend=backend) for s, x in ((graph.structure, tensors), (moved, again))]
    first, second = ([y] if isinstance(y, Tensor) else list(y) for y in results)
    if first[0].shape[0] == graph.num_edges:
        first[0] = first[0][order]
    assert all(map(torch.equal, first, second))


# --- the contract with torch and with callers -----------------------------------------------------------------


@pytest.mark.triton
@pytest.mark.parametrize("backend", ["triton"], indirect=True)  # the others: test_operators
@pytest.mark.parametrize("name", ["sddmm", "segment_softmax"])
def test_opcheck_of_triton(name: str, backend: str, device: str, draw: Draw) -> None:
    structure = random_graph(1, "empty_rows", bipartite=True, device=device).structure
    tensors = [x.requires_grad_() for x in inputs(name, structure, draw, 1, 2, device)]
    options = (False,) if name == "sddmm" else ()
    torch.library.opcheck(getattr(torch.ops.graphattn, name).default, (*flat(structure), *tensors, *options, backend))


@BACKENDS
def test_tensors_on_another_device(backend: str, device: str, draw: Draw) -> None:
    structure = random_graph(0, device=device).structure
    tensors = inputs("spmm", structure, draw, 1, 2, device)
    with pytest.raises(ArgumentError, match=f"values must be on the device of the graph, {device}.*got meta"):
        spmm(structure, tensors[0], tensors[1].to("meta"), backend=backend)
