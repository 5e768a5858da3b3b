"""What ``csr_attention`` promises beside its values, on every backend: the same bits, an operator that torch knows,
compilation and export that hold for every size, and a clear word where a transform is not supported.

The promises that only a GPU shows are in ``test_cuda.py``; the other operators in ``test_operators.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from graphattn import TokenGraph
from graphattn.testing import random_graph
from graphattn_kernels import Structure, View, csr_attention
from graphattn_kernels.structure import flat
from tests.kernels.cases import make, random_case
from tests.kernels.judge import attend, available_device, results

BACKENDS = pytest.mark.parametrize("backend", ["gather", "numba", pytest.param("triton", marks=pytest.mark.triton)])
SCORES = pytest.mark.parametrize("score", ["dot", "product", "att"])
H, D, D_V = 2, 3, 5


@pytest.fixture
def device(backend: str) -> str:
    return available_device(backend)


def inputs(structure: Structure, score: str, device: str, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors that take a gradient, and options: all there are."""
    random = torch.Generator().manual_seed(seed)
    targets, sources, edges = structure.num_targets, structure.num_sources, structure.num_edges
    shapes = {"q": (targets, H, D), "k": (sources, H, D), "v": (sources, H, D_V)}
    shapes |= {"edge_bias": (edges, H), "edge_gate": (edges, H, D)}
    options: dict[str, Any] = {"scale": 0.5, "clamp": 2.0, "dropout_p": 0.3}
    options["dropout_seed"] = torch.tensor([3, 2**40], device=device)
    if score == "att":
        shapes["att"], options["negative_slope"] = (H, D), 0.2
    options["need_product"] = score == "product"
    tensors = {name: torch.randn(shape, generator=random).to(device).requires_grad_() for name, shape in shapes.items()}
    return tensors, options


def values_and_gradients(
    function: Callable[..., Any], structure: Structure, tensors: dict[str, Tensor]
) -> list[Tensor]:
    outputs = function(structure, **tensors)
    slopes = [y.detach().cos().nan_to_num(0.0) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, list(tensors.values()), slopes)]


# --- bits -----------------------------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("score", ["product", "att"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_hundred_repeats_give_the_same_bits(score: str, dtype: torch.dtype, backend: str, device: str) -> None:
    interpreted = backend == "triton" and device == "cpu"
    case = dataclasses.replace(
        random_case(0), graph="hubs", size=3 if interpreted else 120, widths=(8, 5), heads=3, dtype=dtype, score=score,
        bias="heads", layout="contiguous", needs="all", slopes="all", sides="square", dropout_p=0.1, gate=True,
    )  # fmt: skip
    problem, run = make(case).to(device), functools.partial(attend, backend=backend)
    first = results(problem, run, dtype)
    for _ in range(2 if interpreted else 100):
        again = results(problem, run, dtype)
        assert all(torch.equal(again[name], first[name]) for name in first)


# --- the operator ---------------------------------------------------------------------------------------------


def _arguments(structure: Structure, tensors: dict[str, Tensor], options: dict[str, Any]) -> tuple[Any, ...]:
    names = ("q", "k", "v", "edge_bias", "edge_gate", "edge_rows", "att")
    numbers = ("scale", "clamp", "negative_slope", "dropout_p", "need_product")
    given = [*(tensors.get(name) for name in names), options["dropout_seed"], *(options.get(name) for name in numbers)]
    return (*flat(structure), *given)


@BACKENDS
@SCORES
def test_opcheck(score: str, backend: str, device: str) -> None:
    structure = random_graph(1, "empty_rows", bipartite=True, device=device).structure
    arguments = _arguments(structure, *inputs(structure, score, device))
    torch.library.opcheck(torch.ops.graphattn.csr_attention.default, (*arguments, backend))


@BACKENDS
@SCORES
def test_opcheck_of_the_gradient(score: str, backend: str, device: str) -> None:
    structure = random_graph(1, "hub", device=device).structure
    tensors, options = inputs(structure, score, device)
    arguments = [x.detach() if isinstance(x, Tensor) else x for x in _arguments(structure, tensors, options)]
    out, lse, product = torch.ops.graphattn.csr_attention.default(*arguments, backend)
    slopes = (out, None, None) if score == "dot" else (out, lse, product if score == "product" else None)
    arguments += [out, lse, *slopes, backend]
    torch.library.opcheck(torch.ops.graphattn.csr_attention_backward.default, tuple(arguments))


# --- compilation ----------------------------------------------------------------------------------------------

SIZES = ((7, 16, 9), (9, 25, 4), (3, 5, 6))


def graph_of(targets: int, edges: int, sources: int, device: str) -> Structure:
    random = torch.Generator().manual_seed(edges)
    ends = [torch.randint(n, (edges,), generator=random) for n in (sources, targets)]
    return TokenGraph.from_edge_index(torch.stack(ends).to(device), num_targets=targets, num_sources=sources).structure


@BACKENDS
@SCORES
def test_one_compilation_serves_every_size(score: str, backend: str, device: str) -> None:
    """Forward and backward, each compiled once, without a break and with nothing that holds for one size only."""
    torch._dynamo.reset()
    options = inputs(graph_of(*SIZES[0], device), score, device)[1]
    compiled: list[str] = []

    def counting(name: str) -> Callable[..., Any]:
        return lambda graph, example: compiled.append(name) or make_boxed_func(graph)

    compiler = aot_autograd(fw_compiler=counting("forward"), bw_compiler=counting("backward"))

    def layer(structure: Structure, **tensors: Tensor) -> tuple[Tensor, ...]:
        found = csr_attention(structure, backend=backend, **tensors, **options)  # type: ignore[arg-type]
        return (found[0] * 2, *found[1:])

    function = torch.compile(layer, fullgraph=True, dynamic=True, backend=compiler)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in SIZES:
            structure = graph_of(*size, device)
            tensors, _ = inputs(structure, score, device)
            got, expected = (values_and_gradients(f, structure, tensors) for f in (function, layer))
            torch.testing.assert_close(got, expected)
    assert compiled == ["forward", "backward"]


class Layer(nn.Module):
    def __init__(self, backend: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.backend, self.options = backend, options

    def forward(self, structure: Structure, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return csr_attention(structure, backend=self.backend, **tensors, **self.options)  # type: ignore[arg-type]


@BACKENDS
@SCORES
def test_an_exported_program_takes_every_size(score: str, backend: str, device: str) -> None:
    targets, edges, sources = (torch.export.Dim(name, min=2) for name in ("targets", "edges", "sources"))
    of_targets, of_edges, of_sources = {0: targets}, {0: edges}, {0: sources}
    structure = graph_of(*SIZES[0], device)
    tensors, options = inputs(structure, score, device)
    sizes = dict.fromkeys(tensors, of_edges) | {"q": of_targets, "k": of_sources, "v": of_sources}
    if "att" in tensors:
        sizes["att"] = {}
    views = (View({0: n + 1}, of_edges, of_edges, of_edges) for n in (targets, sources))  # type: ignore[arg-type]
    layer = Layer(backend, options)
    program = torch.export.export(layer, (structure, tensors), dynamic_shapes=(Structure(*views), sizes))
    for size in SIZES:
        structure = graph_of(*size, device)
        tensors, _ = inputs(structure, score, device, seed=1)
        torch.testing.assert_close(program.module()(structure, tensors), layer(structure, tensors))


# --- modes and transforms -------------------------------------------------------------------------------------


@BACKENDS
@SCORES
def test_autocast_is_the_call_on_tensors_of_its_dtype(score: str, backend: str, device: str) -> None:
    structure = random_graph(4, "hub", device=device).structure
    tensors, options = inputs(structure, score, device)
    layer = Layer(backend, options)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = values_and_gradients(lambda s, **x: layer(s, x), structure, tensors)
    cast = {name: x.detach().bfloat16().requires_grad_() for name, x in tensors.items()}
    expected = values_and_gradients(lambda s, **x: layer(s, x), structure, cast)
    outputs = len(got) - len(tensors)
    assert got[0].dtype == torch.bfloat16 and got[1].dtype == torch.float32
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == (torch.float32 if number >= outputs else b.dtype)
        assert torch.equal(a, b.to(a.dtype))


@BACKENDS
def test_recomputation_in_backward_drops_the_same_weights(backend: str, device: str) -> None:
    structure = random_graph(4, "dense", device=device).structure
    tensors, options = inputs(structure, "dot", device)
    layer = Layer(backend, options)

    def again(structure: Structure, **tensors: Tensor) -> Any:
        return checkpoint(layer, structure, tensors, use_reentrant=False)

    got = values_and_gradients(again, structure, tensors)
    expected = values_and_gradients(lambda s, **x: layer(s, x), structure, tensors)
    assert all(map(torch.equal, got, expected))


@BACKENDS
def test_without_gradients(backend: str, device: str) -> None:
    structure = random_graph(4, "hub", device=device).structure
    tensors, options = inputs(structure, "dot", device)
    layer = Layer(backend, options)
    expected = layer(structure, tensors)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = layer(structure, tensors)
        assert not any(y.requires_grad for y in got) and all(map(torch.equal, got, expected))


@BACKENDS
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_a_loop(backend: str, device: str) -> None:
    structure = random_graph(4, "hub", device=device).structure
    tensors, options = inputs(structure, "dot", device)
    layer = Layer(backend, options)
    q = torch.stack([tensors["q"].detach(), tensors["q"].detach() + 1])
    rest = {name: x.detach() for name, x in tensors.items() if name != "q"}
    out, lse = torch.vmap(lambda q: layer(structure, {"q": q, **rest}))(q)
    for n in range(2):
        assert all(map(torch.equal, (out[n], lse[n]), layer(structure, {"q": q[n], **rest})))


@BACKENDS
def test_derivatives_that_it_does_not_have_are_refused(backend: str, device: str) -> None:
    """Those of ``torch.func``, and forward mode, whose tangents would be lost without a word."""
    structure = random_graph(4, "hub", device=device).structure
    q = torch.randn(structure.num_targets, H, D, device=device)

    def f(q: Tensor) -> Tensor:
        return csr_attention(structure, q, q, q, backend=backend)[0].square().sum()

    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.func.grad(f)(q)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.func.jvp(f, (q,), (q,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="backend='reference'"):
        f(forward_ad.make_dual(q, q))
