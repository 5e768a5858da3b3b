"""Every backend of attend computes the same function, or says why it cannot; and the table that picks one."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import patterns
from graphattn.attention import AttentionOutput, attend
from graphattn.backends import BACKENDS, flash, tiles
from graphattn.backends.auto import CPU_DENSE
from graphattn.errors import ArgumentError, BackendError
from graphattn.explanation import explain
from graphattn.graph import Pattern, TokenGraph, prepared
from graphattn.testing import random_graph

Draw = Callable[..., Tensor]
H, D = 2, 16


def copies(count: int) -> list[TokenGraph]:
    """Graphs of one size and different edges, one of them without any."""
    masks = torch.rand(count, 6, 8, generator=torch.Generator().manual_seed(0)) < 0.4
    masks[1] = False
    return [TokenGraph.from_adj_t(mask) for mask in masks]


# name: (graph, leading dimensions)
GRAPHS: dict[str, tuple[Callable[[], TokenGraph], tuple[int, ...]]] = {
    "list": (lambda: random_graph(1, "hub", bipartite=True), (3,)),
    "empty rows": (lambda: random_graph(1, "empty_rows"), ()),
    "no edges": (lambda: random_graph(1, "no_edges", bipartite=True), (2,)),
    "ragged": (lambda: random_graph(1, "batch", bipartite=True), (1, 2)),
    "per head": (lambda: TokenGraph.per_head(copies(H)), (3,)),
    "per batch entry": (lambda: TokenGraph.stack(copies(3)), (2, 3)),
    "per both": (lambda: TokenGraph.stack([TokenGraph.per_head(copies(H)), TokenGraph.per_head(copies(H))]), (2,)),
    "complete": (lambda: patterns.complete(7, 5), (2, 2)),
    "causal": (lambda: patterns.causal(40), ()),
    "blocks": (lambda: patterns.blocks([0, 4, 8], [0, 3, 6]), (2,)),
    "ragged blocks": (lambda: patterns.blocks([0, 4, 4, 12]), ()),
    "longformer": (lambda: patterns.window(40, 3) | patterns.hubs(40, 2), (2,)),
    "causal documents": (lambda: patterns.causal(12) & patterns.blocks([0, 5, 12]), ()),
}
DENSE = ("complete", "causal", "blocks")


@pytest.fixture(params=GRAPHS)
def case(request: pytest.FixtureRequest, draw: Draw) -> tuple[str, TokenGraph, list[Tensor]]:
    make, lead = GRAPHS[request.param]
    graph = make()  # a new one for each test: graphs remember what is built
    sizes = (graph.num_targets, graph.num_sources, graph.num_sources)
    return request.param, graph, [draw(*lead, size, H, D, dtype=torch.float32) for size in sizes]


@pytest.fixture
def never_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pattern: Pattern) -> None:
        raise AssertionError(f"{pattern} was listed edge by edge")

    kinds = [Pattern]
    for kind in kinds:
        kinds += kind.__subclasses__()
        monkeypatch.setattr(kind, "_enumerate", refuse)


def same(graph: TokenGraph, x: list[Tensor], backend: str, *, gradient: bool = True, **options: Any) -> None:
    results = []
    for name in (backend, "reference"):
        leaves = [y.clone().requires_grad_(gradient) for y in x]
        found = attend(graph, *leaves, backend=name, **options)
        found = found if isinstance(found, AttentionOutput) else AttentionOutput(found)
        outputs = [y for y in found if y is not None]
        if gradient:
            slopes = [torch.linspace(-1, 1, y.shape[-1]).expand_as(y) for y in outputs[:1]]
            outputs += torch.autograd.grad(outputs[:1], leaves, slopes)
        results.append(outputs)
    assert len(results[0]) == len(results[1]) > 0
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# --- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "gather"])
def test_walks_along_the_edges(backend: str, case: tuple[str, TokenGraph, list[Tensor]]) -> None:
    _, graph, x = case
    same(graph, x, backend, need_lse=True, scale=0.5)


@pytest.mark.triton
def test_tiles(case: tuple[str, TokenGraph, list[Tensor]]) -> None:
    _, graph, x = case
    same(graph, x, "tiles", need_lse=True, clamp=1.0, gradient=False)
    if graph.num_targets <= 12:  # the interpreter takes its time
        same(graph, x, "tiles", scale=0.5)


def test_sdpa(case: tuple[str, TokenGraph, list[Tensor]]) -> None:
    name, graph, x = case
    if name in DENSE:
        same(graph, x, "sdpa", scale=0.5)
        same(graph, x, "sdpa")
    else:
        with pytest.raises(BackendError, match="'sdpa' cannot run: it is for patterns that are complete, causal, or"):
            attend(graph, *x, backend="sdpa")


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_sdpa_takes_any_scale(scale: float, draw: Draw) -> None:
    text = patterns.graph_window(torch.full((9,), -1), torch.tensor([-1]), 1, mask=torch.arange(9) < 7)
    for graph in (patterns.causal(9), patterns.complete(9), text):
        same(graph, [draw(2, 9, H, D, dtype=torch.float32) for _ in range(3)], "sdpa", scale=scale)


def test_flex(case: tuple[str, TokenGraph, list[Tensor]]) -> None:
    _, graph, x = case
    same(graph, x, "flex", gradient=False, need_lse=True, clamp=1.0)
    same(graph, x, "flex", gradient=False)


def test_flex_without_gradients_takes_what_requires_some(draw: Draw) -> None:
    graph = patterns.window(8, 2)
    x = [draw(8, H, D, dtype=torch.float32).requires_grad_() for _ in range(3)]
    with torch.no_grad():
        out = attend(graph, *x, backend="flex")
    torch.testing.assert_close(out, attend(graph, *x, backend="reference").detach())


@pytest.mark.parametrize("name", ["longformer", "per batch entry", "ragged"])
def test_flex_takes_a_rule_for_the_bias(name: str, draw: Draw) -> None:
    make, lead = GRAPHS[name]
    graph = make()
    sizes = (graph.num_targets, graph.num_sources, graph.num_sources)
    x = [draw(*lead, size, H, D, dtype=torch.float32) for size in sizes]
    slopes = torch.tensor([0.5, 0.25])
    same(graph, x, "flex", gradient=False, edge_bias=lambda t, s, h: -slopes[h] * (t - s).abs(), clamp=2.0)


@pytest.mark.usefixtures("never_listed")
@pytest.mark.parametrize("name", ["complete", "causal", "blocks", "longformer", "causal documents"])
def test_patterns_are_not_listed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By any backend that does not walk along edges, nor by the choice between them."""
    seen: list[Any] = []

    def serve(blocks: Any, q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        seen.append(blocks)
        return v.new_zeros(*q.shape[:-1], v.shape[-1]), v.new_zeros(q.shape[:-1])

    monkeypatch.setattr(tiles, "attend_checked", serve)  # the interpreter is not asked here
    make, lead = GRAPHS[name]
    graph = make()
    q, k = (torch.randn(*lead, size, H, D) for size in (graph.num_targets, graph.num_sources))
    explain(graph, q, k, k)
    attend(graph, q, k, k, backend="tiles")
    assert seen == [graph._blocks]
    attend(graph, q, k, k, backend="flex")
    if name in DENSE:
        attend(graph, q, k, k, backend="sdpa")
    prepared.suitable_blocks(graph)
    graph.prepare("tiles").prepare("flex").prepare("sdpa")


# --- edges with more to say ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["gather", "reference"])
@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize("options", [{}, {"need_weights": True}, {"normalizer": "sigmoid"}], ids=str)
def test_the_product_of_each_edge(backend: str, lead: tuple[int, ...], options: dict[str, Any], draw: Draw) -> None:
    graph = random_graph(2, "hub", bipartite=True)
    q, k = draw(*lead, graph.num_targets, H, 4), draw(*lead, graph.num_sources, H, 4)
    gate = draw(graph.num_edges, H, 4)
    leaves = [x.requires_grad_() for x in (q, k, gate)]
    source, target = graph.edge_index
    expected = 0.7 * q[..., target, :, :] * k[..., source, :, :] * gate
    bias = draw(graph.num_edges)  # is added later
    result = attend(
        *(graph, q, k, k),
        edge_gate=gate,
        edge_bias=bias,
        clamp=0.5,
        scale=0.7,
        need_product=True,
        backend=backend,
        **options,
    )
    assert isinstance(result, AttentionOutput) and result.product is not None
    torch.testing.assert_close(result.product, expected)
    slope = draw(*expected.shape)
    torch.testing.assert_close(
        torch.autograd.grad(result.product, leaves, slope, retain_graph=True),
        torch.autograd.grad(expected, leaves, slope, retain_graph=True),
    )
    scores = attend(graph, None, None, k, score=expected.sum(-1), edge_bias=bias, clamp=0.5, **options)
    torch.testing.assert_close(result.out, scores.out if isinstance(scores, AttentionOutput) else scores)


def test_the_product_without_a_gate_and_for_a_graph_for_each_head(draw: Draw) -> None:
    members = copies(H)
    graph = TokenGraph.per_head(members)
    q, k = draw(6, H, 4), draw(8, H, 4)
    product = attend(graph, q, k, k, need_product=True, backend="gather").product
    source, target = graph.edge_index
    head = target // 6
    torch.testing.assert_close(product.squeeze(1), q[target % 6, head] * k[source % 8, head] / 2)


def test_the_product_needs_the_dot_score(draw: Draw) -> None:
    graph = random_graph(1)
    x = draw(graph.num_tokens, H, 1)
    with pytest.raises(ArgumentError, match="need_product needs the dot score, got GATScore"):
        attend(graph, x, x, x, score="gat", need_product=True)
    with pytest.raises(ArgumentError, match="need_product needs the dot score, got a ready edge tensor"):
        attend(graph, None, None, x, score=draw(graph.num_edges), need_product=True)


# --- reasons ---------------------------------------------------------------------------------------------------

WHOLE = ("tiles", "flex", "sdpa")
LACKING: dict[str, tuple[dict[str, Any], str]] = {
    "bias": ({"edge_bias": torch.zeros(64)}, "it has no edge_bias"),
    "gate": ({"edge_gate": torch.zeros(64, H, D)}, "it has no edge_gate"),
    "dropout": ({"dropout_p": 0.5, "dropout_seed": torch.tensor([1, 2])}, "it has no dropout"),
    "product": ({"need_product": True}, "it does not return the product of each edge"),
    "score": ({"score": "gat"}, "it knows the dot score only, got GATScore"),
    "weights": ({"need_weights": True}, "it computes whole attention"),
    "normaliser": ({"normalizer": "sigmoid"}, "it computes whole attention"),
}


@pytest.mark.parametrize("backend", WHOLE)
@pytest.mark.parametrize("option", LACKING)
def test_what_others_than_edges_lack(backend: str, option: str) -> None:
    options, text = LACKING[option]
    x = torch.randn(8, H, D)
    with pytest.raises(BackendError, match=f"backend '{backend}' cannot run: {text}"):
        attend(patterns.complete(8), x, x, x, backend=backend, **options)
    found = explain(patterns.complete(8), x, x, x, **options)
    assert found.backend in ("numba", "gather") and text in found.others[backend]
    attend(patterns.complete(8), x, x, x, **options)


def test_other_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    x, graph = torch.randn(8, H, D), patterns.complete(8)

    def reason(graph: TokenGraph, x: Tensor, backend: str, **options: Any) -> str:
        with pytest.raises(BackendError) as error:
            attend(graph, x, x, x, backend=backend, **options)
        return str(error.value)

    assert "no gradient on CPU" in reason(graph, x.clone().requires_grad_(), "flex")
    assert "it has no clamp" in reason(graph, x, "sdpa", clamp=1.0)
    assert "does not return the log-sum-exp" in reason(graph, x, "sdpa", need_lse=True)
    assert "take float16, bfloat16 or float32" in reason(graph, x.double(), "tiles")
    assert "no tokens on one side" in reason(patterns.complete(0), x[:0], "sdpa")
    assert "there is nothing to compute" in reason(graph, x[None, ...][:0], "flex")
    twice = TokenGraph.from_edge_index(torch.zeros(2, 2, dtype=torch.int64), 8)
    assert "duplicate edges" in reason(twice, x, "tiles") and "duplicate edges" in reason(twice, x, "flex")
    both = TokenGraph.stack([TokenGraph.per_head(copies(H))])
    y = torch.randn(2, 1, 8, H, D)
    with pytest.raises(BackendError, match="goes with one leading dimension"):
        attend(both, y[:, :, :6], y, y, backend="flex")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not torch.cuda.is_available():
        assert "needs CUDA tensors" in reason(graph, x, "tiles")


# --- the choice ------------------------------------------------------------------------------------------------


def chosen(graph: TokenGraph, dim: int = D, width: int = D, **options: Any) -> str:
    q = torch.zeros(*options.pop("lead", ()), graph.num_targets, H, dim)
    k = torch.zeros(*q.shape[:-3], graph.num_sources, H, dim)
    return explain(graph, q, k, k.new_zeros(*k.shape[:-1], width), **options).backend


def test_the_choice_on_cpu() -> None:
    for dense in (patterns.complete(CPU_DENSE), patterns.causal(CPU_DENSE)):
        assert chosen(dense) == "sdpa"
        assert chosen(dense, need_lse=True) == chosen(dense, clamp=5.0) == chosen(dense, width=D + 1) == "numba"
    assert chosen(patterns.complete(8)) == "numba"
    assert chosen(patterns.blocks([0, CPU_DENSE, 2 * CPU_DENSE])) == "sdpa"
    assert chosen(patterns.blocks([0, CPU_DENSE, 3 * CPU_DENSE])) == "numba"
    assert chosen(patterns.blocks(list(range(0, 2 * CPU_DENSE, 8)))) == "numba"
    assert chosen(patterns.window(2 * CPU_DENSE, 3)) == chosen(random_graph(0, "dense")) == "numba"
    assert chosen(random_graph(0, "dense").prepare("tiles")) == "numba"  # tiles are for CUDA


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The choice as it is made for tensors on CUDA; nothing is computed."""
    from graphattn.backends.base import Call

    device = property(lambda call: torch.device("cuda"))
    monkeypatch.setattr(Call, "device", device)
    monkeypatch.setattr("graphattn.backends.flex.waits_for_nothing", lambda device: False)
    monkeypatch.setattr("graphattn.backends.tiles.waits_for_nothing", lambda device: False)
    monkeypatch.setattr("graphattn.backends.sdpa.waits_for_nothing", lambda device: False)
    yield


@pytest.mark.usefixtures("as_on_cuda")
def test_the_choice_on_cuda() -> None:
    """``edges``: walked along, by whatever can do so on the tensors of this test."""
    edges = chosen(random_graph(0, "sparse"), need_product=True)
    assert edges in ("numba", "gather", "triton")
    for dense in (patterns.complete(8, 5), patterns.causal(8), patterns.blocks([0, 3, 6])):
        assert chosen(dense) == "sdpa"
        assert chosen(dense, width=D + 1) == "sdpa"
    assert chosen(patterns.causal(200), need_lse=True) == chosen(patterns.causal(200), clamp=5.0) == "tiles"
    longformer = patterns.window(600, 40) | patterns.hubs(600, 2)
    assert chosen(longformer) == "tiles"
    assert chosen(longformer, edge_bias=lambda t, s, h: -(t - s).abs()) == "flex"
    assert chosen(longformer, dropout_p=0.5, dropout_seed=torch.tensor([1, 2])) == edges
    assert chosen(patterns.window(600, 0)) == edges  # one pair of 64 in a row of a tile
    mask = torch.rand(3, 100, 100, generator=torch.Generator().manual_seed(0))
    full, thin = (TokenGraph.batch([TokenGraph.from_adj_t(m < p) for m in mask]) for p in (0.4, 0.01))
    assert chosen(full) == "tiles" and chosen(thin) == edges
    assert chosen(full, score="gat") == chosen(full, edge_gate=torch.zeros(full.num_edges, H, D)) == edges
    assert chosen(thin.prepare("tiles")) == "tiles"  # told so
    twice = TokenGraph.from_edge_index(full.edge_index.repeat(1, 2), full.num_tokens, ptr=full.target_ptr)
    assert chosen(twice) == edges
    assert chosen(TokenGraph.stack([full, full]), lead=(2,)) == "tiles"


@pytest.mark.usefixtures("as_on_cuda")
def test_compiled_code_takes_tiles_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = TokenGraph.from_adj_t(torch.ones(100, 100, dtype=torch.bool))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert chosen(graph) != "tiles"
    monkeypatch.undo()
    graph.prepare("tiles")
    monkeypatch.setattr("graphattn.backends.base.Call.device", property(lambda call: torch.device("cuda")))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert chosen(graph) == "tiles"


@pytest.mark.triton
@pytest.mark.parametrize("backend", ["tiles", "sdpa"])
def test_one_compiled_graph_serves_every_size(backend: str) -> None:
    counted = []

    def compiler(module: torch.nn.Module, inputs: list[Tensor]) -> Callable[..., Any]:
        from torch._dynamo.backends.debugging import aot_eager

        counted.append(module)
        return aot_eager(module, inputs)

    def function(graph: TokenGraph, x: Tensor) -> Tensor:
        out = attend(graph, x, x, x, backend=backend)
        assert isinstance(out, Tensor)
        return out.square()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    for size in (70, 100):
        graph: TokenGraph = patterns.causal(size)
        if backend == "tiles":
            graph = TokenGraph.from_adj_t(graph.to_dense()).prepare("tiles", block=32)
        x = torch.randn(size, 1, D, requires_grad=backend == "sdpa")  # Triton's interpreter takes its time
        found, expected = compiled(graph, x), function(graph, x)
        torch.testing.assert_close(found, expected)
        if x.requires_grad:
            gradients = (torch.autograd.grad(out.sum(), x)[0] for out in (found, expected))
            torch.testing.assert_close(*gradients)
    assert len(counted) <= 2  # one recompilation at most
    torch._dynamo.reset()


# --- flash-attn, which is not installed here -------------------------------------------------------------------


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A flash_attn package with the function that it has, by PyTorch's dense attention."""
    calls: list[dict[str, Any]] = []

    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, None]:
        assert softmax_scale is None or softmax_scale > 0, "its kernels mask before they scale"
        calls.append({"causal": causal, "window_size": window_size, "shape": list(q.shape)})
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
        mask = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if window_size is not None:
            mask = mask & (distance <= window_size[0]) & (distance >= -window_size[1])
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=softmax_scale)
        return out.transpose(1, 2), None

    package = types.ModuleType("flash_attn")
    package.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(flash, "available", lambda name: True)
    monkeypatch.setattr("graphattn.backends.base.Call.device", property(lambda call: torch.device("cuda")))
    flash._attention.cache_clear()
    yield calls
    flash._attention.cache_clear()


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (patterns.complete(6, 9), {"causal": False, "window_size": None, "shape": [2, 6, H, D]}),
        (patterns.causal(9), {"causal": True, "window_size": None, "shape": [2, 9, H, D]}),
        (patterns.blocks([0, 3, 6], [0, 4, 8]), {"causal": False, "window_size": None, "shape": [4, 3, H, D]}),
        (patterns.window(9, 2), {"causal": False, "window_size": (2, 2), "shape": [2, 9, H, D]}),
        (patterns.window(9, 2, causal=True), {"causal": True, "window_size": (2, 0), "shape": [2, 9, H, D]}),
    ],
    ids=repr,
)
def test_flash(graph: Pattern, expected: dict[str, Any], stub: list[dict[str, Any]], draw: Draw) -> None:
    q, k, v = (draw(2, n, H, D, dtype=torch.bfloat16) for n in (graph.num_targets, *2 * [graph.num_sources]))
    out = attend(graph, q, k, v, scale=0.3, backend="flash")
    assert stub == [expected]
    exact = attend(graph, *(x.double() for x in (q, k, v)), scale=0.3, backend="reference")
    torch.testing.assert_close(out.double(), exact, rtol=0.02, atol=0.02)
    exact = attend(graph, *(x.double() for x in (q, k, v)), scale=-0.3, backend="reference")
    again = attend(graph, q, k, v, scale=-0.3, backend="flash")
    torch.testing.assert_close(again.double(), exact, rtol=0.02, atol=0.02)


def test_flash_has_reasons(stub: list[dict[str, Any]]) -> None:
    x = torch.zeros(9, H, D, dtype=torch.float16)
    for graph, y, text in (
        (patterns.window(9, 2, dilation=2), x, "windows without dilation"),
        (patterns.causal(9), x.float(), "takes float16 or bfloat16, got torch.float32"),
        (patterns.causal(9), x[..., :12], "in steps of 8, got 12 and 12"),
    ):
        with pytest.raises(BackendError, match=text):
            attend(graph, y, y, y, backend="flash")
    assert not stub


def test_flash_is_not_needed() -> None:
    x = torch.zeros(9, H, D, dtype=torch.float16)
    reason = BACKENDS["flash"].missing() or "it needs CUDA tensors"
    with pytest.raises(BackendError, match="'flash' cannot run"):
        attend(patterns.causal(9), x, x, x, backend="flash")
    assert reason in str(explain(patterns.causal(9), x, x, x))
