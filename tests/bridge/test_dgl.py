"""The DGL layers give DGL's numbers, gradients, initial values and errors, on every kind of DGLGraph."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphattn import TokenGraph, patterns
from graphattn.bridge import dgl as ours
from graphattn.bridge.dgl import graphs
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.testing import GRAPH_KINDS, random_graph, require_or_skip

dgl = require_or_skip("dgl")

H, D = 3, 4
GAT_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"residual": True, "activation": torch.tanh, "negative_slope": 0.4},
    "identity residual": {"residual": True, "in_feats": H * D},
    "no bias": {"bias": False, "residual": True},
}


def pair_of_layers(name: str, in_feats: Any = 5, **options: Any) -> tuple[nn.Module, nn.Module]:
    """DGL's layer and ours, each made from one seed, in float64."""
    options.setdefault("allow_zero_in_degree", True)
    made = []
    for kind in (getattr(dgl.nn, name), getattr(ours, name)):
        torch.manual_seed(1)
        made.append(kind(in_feats, D, H, **options).double().eval())
    return made[0], made[1]


def random_rows(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, requires_grad=True)


def assert_same(theirs: nn.Module, mine: nn.Module, graph: Any, feat: Any, *arguments: Any) -> None:
    """Values, weights and gradients of all parameters and inputs."""
    leaves = [x for x in (*(feat if isinstance(feat, tuple) else (feat,)), *arguments) if isinstance(x, Tensor)]
    results = []
    for layer in (theirs, mine):
        out, weights = layer(graph, feat, *arguments, get_attention=True)
        other = layer(graph, feat, *arguments)
        torch.testing.assert_close(out, other, rtol=1e-10, atol=1e-12)
        down = torch.randn(other.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        wanted = [*leaves, *layer.parameters()]
        # Of the fused road; a bias that cancels in the softmax may have none.
        gradients = torch.autograd.grad((other * down).sum(), wanted, allow_unused=True)
        results.append((other, weights, *(torch.zeros(()) if g is None else g for g in gradients)))
    for expected, got in zip(*results, strict=True):
        if expected.dim() == 0:
            assert not got.any()
        else:
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


# --- graphs ---------------------------------------------------------------------------------------------------


def homogeneous() -> Any:
    """A multigraph with self-loops, a node without in-edges, and edges in no order."""
    return dgl.graph((torch.randint(0, 9, (40,)), torch.randint(0, 8, (40,))), num_nodes=9)


def batch() -> Any:
    empty = dgl.graph(([], []), num_nodes=2)
    return dgl.batch([homogeneous(), empty, homogeneous(), dgl.rand_graph(4, 7)])


def bipartite() -> Any:
    edges = torch.randint(0, 6, (30,)), torch.randint(0, 4, (30,))
    return dgl.heterograph({("user", "rates", "item"): edges}, {"user": 7, "item": 5, "shop": 3})


def block() -> Any:
    graph = dgl.rand_graph(40, 160)
    sampled = dgl.sampling.sample_neighbors(graph, torch.arange(10), 4)
    return dgl.to_block(sampled, torch.arange(10))


SQUARE = {
    "homogeneous": homogeneous,
    "batch": batch,
    "int32": lambda: homogeneous().int(),
    "no edges": lambda: dgl.graph(([], []), num_nodes=5),
    "no nodes": lambda: dgl.graph(([], [])),
    "csc only": lambda: homogeneous().formats("csc"),
    "csr only": lambda: homogeneous().formats("csr"),
}


def prepared(graph: Any) -> Any:
    """DGL's own layers cannot run in one format alone: the same graph with all of them."""
    source, target = TokenGraph.from_dgl(graph).edge_index
    return dgl.graph((source, target), num_nodes=graph.num_nodes())


# --- GAT, GATv2, dot ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "DotGatConv"])
def test_constructor_is_dgls(name: str) -> None:
    expected = inspect.signature(getattr(dgl.nn, name)).parameters
    found = dict(inspect.signature(getattr(ours, name)).parameters)
    assert found.pop("backend").kind is inspect.Parameter.KEYWORD_ONLY
    assert [(p.name, p.default) for p in found.values()] == [(p.name, p.default) for p in expected.values()]
    forward = [inspect.signature(getattr(module, name).forward) for module in (dgl.nn, ours)]
    assert list(forward[0].parameters) == list(forward[1].parameters)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
@pytest.mark.parametrize("options", GAT_OPTIONS.values(), ids=list(GAT_OPTIONS))
@pytest.mark.parametrize("in_feats", [5, (5, 6)], ids=str)
def test_initial_values_and_state_dict(name: str, options: dict[str, Any], in_feats: Any) -> None:
    theirs, mine = pair_of_layers(name, **{"in_feats": in_feats, **options})
    expected, found = theirs.state_dict(), mine.state_dict()
    assert list(found) == list(expected)
    for key in expected:
        assert torch.equal(found[key], expected[key]), key
    mine.reset_parameters()
    mine.load_state_dict(expected)
    theirs.load_state_dict(mine.state_dict())


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
@pytest.mark.parametrize("options", GAT_OPTIONS.values(), ids=list(GAT_OPTIONS))
def test_options(name: str, options: dict[str, Any]) -> None:
    theirs, mine = pair_of_layers(name, **options)
    graph = homogeneous()
    assert_same(theirs, mine, graph, random_rows(9, options.get("in_feats", 5)))


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "DotGatConv"])
@pytest.mark.parametrize("kind", SQUARE)
def test_every_square_graph(name: str, kind: str) -> None:
    theirs, mine = pair_of_layers(name)
    graph = SQUARE[kind]()
    feat = random_rows(graph.num_nodes(), 5)
    if kind == "no nodes":  # DGL fails here
        assert mine(graph, feat).shape == (0, H, D)
    elif "only" in kind:
        with torch.no_grad():
            torch.testing.assert_close(mine(graph, feat), theirs(prepared(graph), feat), rtol=1e-10, atol=1e-12)
    else:
        assert_same(theirs, mine, graph, feat)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "DotGatConv"])
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_token_graphs(name: str, kind: str) -> None:
    graph = random_graph(4, kind)
    if graph.target_ptr is not None:
        graph = TokenGraph.batch(graph.unbatch())
    theirs, mine = pair_of_layers(name)
    feat = random_rows(graph.num_tokens, 5)
    expected, weights = theirs(graph.to_dgl(), feat, get_attention=True)
    found = mine(graph, feat, get_attention=True)
    torch.testing.assert_close(found[0], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "in_feats"),
    [("GATConv", (5, 6)), ("GATConv", 5), ("GATv2Conv", (5, 6)), ("GATv2Conv", 5), ("DotGatConv", (5, 6))],
)
def test_bipartite(name: str, in_feats: Any) -> None:
    theirs, mine = pair_of_layers(name, in_feats)
    # DGL's layers take the numbers of nodes from a graph that has no isolated node types.
    source, target = bipartite().edges()
    graph = dgl.heterograph({("user", "rates", "item"): (source, target)}, {"user": 7, "item": 5})
    feat = random_rows(7, 5), random_rows(5, 6 if isinstance(in_feats, tuple) else 5)
    assert_same(theirs, mine, graph, feat)
    isolated = bipartite()
    assert mine(isolated, feat).shape == (5, H, D)
    torch.testing.assert_close(mine(isolated, feat), mine(isolated, list(feat)))


def test_dot_takes_a_pair_with_one_projection() -> None:  # DGL's fails
    mine = pair_of_layers("DotGatConv")[1]
    graph, x = homogeneous(), random_rows(9, 5)
    torch.testing.assert_close(mine(graph, (x, x)), mine(graph, x))


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "DotGatConv"])
@pytest.mark.parametrize("pair", [False, True], ids=["one tensor", "pair"])
def test_block(name: str, pair: bool) -> None:
    theirs, mine = pair_of_layers(name, (5, 5) if pair and name == "DotGatConv" else 5)
    graph = block()
    feat = random_rows(graph.num_src_nodes(), 5)
    assert_same(theirs, mine, graph, (feat, feat[: graph.num_dst_nodes()]) if pair else feat)
    # A TokenGraph that is not square is read as a block is.
    torch.testing.assert_close(mine(TokenGraph.from_dgl(graph), feat), mine(graph, feat))


@pytest.mark.parametrize("share_weights", [False, True])
def test_gatv2_with_shared_weights(share_weights: bool) -> None:
    theirs, mine = pair_of_layers("GATv2Conv", share_weights=share_weights)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert len(list(mine.parameters())) == len(list(theirs.parameters()))
    assert_same(theirs, mine, homogeneous(), random_rows(9, 5))
    theirs, mine = pair_of_layers("GATv2Conv", (5, 6), share_weights=share_weights)
    assert all(torch.equal(mine.state_dict()[key], value) for key, value in theirs.state_dict().items())


def test_edge_weight() -> None:
    theirs, mine = pair_of_layers("GATConv", residual=True)
    graph = homogeneous()
    weight = torch.rand(graph.num_edges(), dtype=torch.float64, requires_grad=True)
    assert_same(theirs, mine, graph, random_rows(9, 5), weight)


def test_more_dimensions() -> None:
    theirs, mine = pair_of_layers("GATConv", residual=True)
    graph, feat = homogeneous(), random_rows(9, 2, 3, 5)
    assert_same(theirs, mine, graph, feat)
    assert mine(graph, feat).shape == (9, 2, 3, H, D)
    # DGL's GATv2Conv takes none: each entry is a call of its own.
    layer = pair_of_layers("GATv2Conv")[1]
    torch.testing.assert_close(layer(graph, feat)[:, 1, 2], layer(graph, feat[:, 1, 2]))
    weight = torch.rand(graph.num_edges(), dtype=torch.float64)
    torch.testing.assert_close(mine(graph, feat, weight)[:, 1, 2], mine(graph, feat[:, 1, 2], weight))


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_dropout(name: str) -> None:
    _, mine = pair_of_layers(name, feat_drop=0.3, attn_drop=0.5)
    graph = dgl.rand_graph(200, 4000)
    feat = random_rows(200, 5).detach()
    expected = mine(graph, feat)
    mine.train()
    mine.feat_drop.p = 0.0
    out, weights = mine(graph, feat, get_attention=True)
    dropped = float((weights == 0).double().mean())
    assert 0.45 < dropped < 0.55, "the weights come back as they were applied"
    many = torch.stack([mine(graph, feat) for _ in range(200)])
    assert not torch.equal(many[0], many[1])
    assert (many.mean(0) - expected).abs().max() < 0.3 * many.std(0).max()
    torch.manual_seed(3)
    first = mine(graph, feat)
    torch.manual_seed(3)
    assert torch.equal(first, mine(graph, feat))


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "DotGatConv"])
def test_zero_in_degree(name: str) -> None:
    theirs, mine = pair_of_layers(name, allow_zero_in_degree=False)
    graph = dgl.graph(([0, 1], [1, 2]))
    feat = random_rows(3, 5)
    for kind in (dgl.DGLError, ArgumentError):
        with pytest.raises(kind, match="1 of 3 have none.*add_self_loop.*allow_zero_in_degree=True"):
            mine(graph, feat)
    with pytest.raises(dgl.DGLError):
        theirs(graph, feat)
    assert_same(theirs, mine, dgl.add_self_loop(graph), feat)
    mine.set_allow_zero_in_degree(True)
    out = mine(graph, feat)
    bias = getattr(mine, "bias", None)
    assert torch.equal(out[0], torch.zeros(H, D, dtype=torch.float64) if bias is None else bias.view(H, D))
    out[0].sum().backward()
    assert torch.equal(feat.grad, torch.zeros_like(feat)), "exactly zero, in the gradient too"


# --- heterogeneous --------------------------------------------------------------------------------------------


def hetero() -> Any:
    return dgl.heterograph(
        {
            ("user", "follows", "user"): (torch.randint(0, 6, (15,)), torch.randint(0, 6, (15,))),
            ("user", "rates", "item"): (torch.randint(0, 6, (12,)), torch.randint(0, 4, (12,))),
            ("shop", "sells", "item"): (torch.tensor([0, 1]), torch.tensor([3, 0])),
            ("item", "nothing", "shop"): ([], []),
        },
        {"user": 6, "item": 4, "shop": 2},
    )


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
@pytest.mark.parametrize("as_block", [False, True], ids=["graph", "block"])
def test_hetero_graph_conv(name: str, as_block: bool) -> None:
    graph = hetero()
    if as_block:
        targets = {"user": torch.arange(3), "item": torch.arange(2), "shop": torch.arange(1)}
        graph = dgl.to_block(dgl.in_subgraph(graph, targets), targets)
    convs = []
    for module in (dgl.nn, ours):
        torch.manual_seed(1)
        layers = {etype: getattr(module, name)(5, D, H) for etype in graph.etypes}
        convs.append(dgl.nn.HeteroGraphConv(layers, aggregate="sum").double())
    x = {ntype: random_rows(graph.num_src_nodes(ntype), 5) for ntype in graph.srctypes}
    expected, found = (conv(graph, x) for conv in convs)
    assert set(found) == set(expected) and len(found) == 3
    for ntype in expected:
        torch.testing.assert_close(found[ntype], expected[ntype], rtol=1e-10, atol=1e-12)


def test_every_type_in_one_softmax() -> None:
    """The other scope of the softmax: over all edges of a node, whatever their type."""
    theirs, mine = pair_of_layers("GATConv")
    graph = dgl.to_homogeneous(hetero())
    assert_same(theirs, mine, graph, random_rows(12, 5))


# --- transformer ----------------------------------------------------------------------------------------------


def dense(graph: Any, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What DGL's dense layer wants: bias ``[1, N, N, H]`` and mask ``[1, N, N]``, true where nothing is visible."""
    source, target = graph.edges(order="eid")
    n = graph.num_nodes()
    mask = torch.ones(1, n, n, dtype=torch.bool)
    mask[0, target, source] = False
    spread = torch.zeros(1, n, n, H, dtype=bias.dtype)
    return spread.index_put((torch.tensor(0), target, source), bias), mask


def simple_graph() -> Any:
    """No duplicates, which a dense matrix cannot hold, and no empty rows, where DGL gives NaN."""
    return dgl.add_self_loop(dgl.remove_self_loop(dgl.to_simple(dgl.rand_graph(9, 25))))


@pytest.mark.parametrize("bias_type", ["add", "mul"])
@pytest.mark.parametrize("bias", [False, True])
def test_biased_mha(bias_type: str, bias: bool) -> None:
    layers = []
    for module in (dgl.nn, ours):
        torch.manual_seed(1)
        layers.append(module.BiasedMHA(H * D, H, bias=bias, attn_bias_type=bias_type).double().eval())
    theirs, mine = layers
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    graph = simple_graph()
    x, edge_bias = random_rows(9, H * D), random_rows(graph.num_edges(), H)
    attn_bias, mask = dense(graph, edge_bias)
    expected, found = theirs(x.unsqueeze(0), attn_bias, mask)[0], mine(graph, x, edge_bias)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    down = torch.randn_like(expected)
    for theirs_gradient, my_gradient in zip(
        torch.autograd.grad((expected * down).sum(), (x, edge_bias)),
        torch.autograd.grad((found * down).sum(), (x, edge_bias)),
        strict=True,
    ):
        torch.testing.assert_close(my_gradient, theirs_gradient, rtol=1e-9, atol=1e-11)
    one = edge_bias[:, 0].detach()
    torch.testing.assert_close(mine(graph, x, one), mine(graph, x, one.unsqueeze(-1).expand(-1, H)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_graphormer_layer_on_a_batch_needs_no_padding(norm_first: bool) -> None:
    theirs = dgl.nn.GraphormerLayer(H * D, 20, H, norm_first=norm_first).double().eval()
    mine = ours.GraphormerLayer(H * D, 20, H, norm_first=norm_first).double().eval()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict(theirs.state_dict())
    sizes = [4, 1, 6]
    complete = patterns.blocks(torch.tensor([0, 4, 5, 11]))
    x = random_rows(11, H * D)
    padded = nn.utils.rnn.pad_sequence(list(x.split(sizes)), batch_first=True)
    mask = torch.arange(6) >= torch.tensor(sizes)[:, None]
    expected = theirs(padded, None, mask[:, None, :].expand(3, 6, 6))
    torch.testing.assert_close(mine(complete, x), expected[~mask], rtol=1e-10, atol=1e-12)


def test_biased_mha_without_in_edges() -> None:
    layer = ours.BiasedMHA(H * D, H).eval()
    out = layer(dgl.graph(([0], [1]), num_nodes=3), torch.randn(3, H * D))
    assert torch.equal(out[0], out[2]) and torch.isfinite(out).all()


# --- the graph is converted once ------------------------------------------------------------------------------


def test_token_graph_is_kept_as_long_as_the_structure() -> None:
    gc.collect()
    known = len(graphs._KNOWN)
    graph = homogeneous()
    first = ours.token_graph(graph)
    assert ours.token_graph(graph) is first and ours.token_graph(graph.local_var()) is first
    graph.add_edges([0, 1], [2, 3])  # in place
    second = ours.token_graph(graph)
    assert second is not first and second.num_edges == 42
    del graph
    gc.collect()
    assert len(graphs._KNOWN) == known


def test_features_of_the_graph_are_left_alone() -> None:
    graph = homogeneous()
    graph.ndata["ft"] = torch.ones(9)
    _, mine = pair_of_layers("GATConv")
    mine(graph, random_rows(9, 5), get_attention=True)
    assert set(graph.ndata) == {"ft"} and not graph.edata


def test_autocast_and_half() -> None:
    graph = homogeneous()
    layer = ours.GATConv(5, D, H, allow_zero_in_degree=True)
    x = torch.randn(9, 5)
    expected = layer(graph, x)
    with torch.autocast("cpu", torch.bfloat16):
        for weight in (None, torch.ones(graph.num_edges())):
            torch.testing.assert_close(layer(graph, x, weight).float(), expected, rtol=0.05, atol=0.05)
    half = layer.bfloat16()(graph, x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c: c(3, torch.ones(9, 5)), ArgumentTypeError, "graph must be a DGLGraph or a TokenGraph, got int"),
        (lambda c: c(hetero(), torch.ones(9, 5)), ArgumentError, "must have one edge type, got 4; give edge_type"),
        (lambda c: c(homogeneous(), torch.ones(8, 5)), ArgumentError, r"feat must be \[9, ..., F\].* got \[8, 5\]"),
        (lambda c: c(homogeneous(), torch.ones(9).long()), ArgumentTypeError, "feat must be a floating tensor"),
        (lambda c: c(homogeneous(), None), ArgumentTypeError, "feat must be a floating tensor, got NoneType"),
        (lambda c: c(homogeneous(), (torch.ones(9, 5),)), ArgumentError, r"feat must be .* a pair .* got 1 entries"),
        (lambda c: c(bipartite(), torch.ones(7, 5)), ArgumentError, r"feat must be a pair .* 7 sources and 5 targets"),
        (
            lambda c: c(bipartite(), (torch.ones(7, 5), torch.ones(7, 5))),
            ArgumentError,
            r"feat\[1\] \(target features\) must be \[5, ..., F\]",
        ),
        (
            lambda c: c(homogeneous(), torch.ones(9, 5), torch.ones(40, 1)),
            ArgumentError,
            r"edge_weight must be \[40\], got \[40, 1\]",
        ),
        (
            lambda c: c(TokenGraph.per_head([patterns.complete(9)] * 3), torch.ones(9, 5)),
            ArgumentError,
            r"graph must be one graph, .* leading dimensions \[3\]",
        ),
        (lambda c: ours.GATConv(5, 0, 1), ArgumentError, "out_feats and num_heads must be positive, got 0 and 1"),
        (lambda c: ours.BiasedMHA(12, 5), ArgumentError, "multiple of heads"),
        (lambda c: ours.BiasedMHA(12, 3, attn_bias_type="x"), ArgumentError, "'add' or 'mul', got 'x'"),
        (lambda c: ours.BiasedMHA(12, 3)(homogeneous(), torch.ones(9, 5)), ArgumentError, r"feat must be \[N, 12\]"),
        (
            lambda c: ours.BiasedMHA(12, 3, attn_bias_type="mul")(homogeneous(), torch.ones(9, 12), torch.ones(3)),
            ArgumentError,
            r"attn_bias must be \[40\] or \[40, 3\], got \[3\]",
        ),
    ],
)
def test_bad_arguments(call: Callable, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        call(ours.GATConv(5, D, H, allow_zero_in_degree=True))
