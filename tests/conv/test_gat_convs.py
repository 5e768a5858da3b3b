"""GATConv and GATv2Conv are PyG's."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphattn import TokenGraph
from graphattn.conv import _self_loops
from graphattn.testing import GRAPH_KINDS, random_graph, require_or_skip

require_or_skip("pyg")

from torch_geometric.nn import GATConv as PyGGATConv  # noqa: E402
from torch_geometric.nn import GATv2Conv as PyGGATv2Conv  # noqa: E402

from graphattn.conv import GATConv, GATv2Conv  # noqa: E402

CHANNELS = 4
PYG: dict[type, type] = {GATConv: PyGGATConv, GATv2Conv: PyGGATv2Conv}
each = pytest.mark.parametrize("kind", PYG)
FILL_VALUES = ("mean", "add", "min", "max", "mul", 2.5, torch.tensor([0.5, -1.0, 2.0]))

OPTIONS = [
    {
        "heads": heads,
        "concat": concat,
        "residual": rest,
        "bias": not rest,
        "edge_dim": edge_dim,
        "add_self_loops": loops,
    }
    for heads, concat, rest, edge_dim, loops in product((1, 3), (True, False), (True, False), (None, 3), (True, False))
]


def twins(kind: type, channels: Any, **options: Any) -> tuple[Any, Any]:
    theirs = PYG[kind](channels, CHANNELS, **options).double()
    ours = kind(channels, CHANNELS, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def gradients(conv: nn.Module, out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    leaves = [*inputs, *conv.parameters()]
    return list(torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True, materialize_grads=True))


def assert_same(kind: type, x: Any, edge_index: Tensor, edge_attr: Tensor | None, **options: Any) -> None:
    """Outputs, weights, edge order and gradients are PyG's, whether weights are asked for or not."""
    channels = tuple(rows.shape[1] for rows in x) if isinstance(x, tuple) else x.shape[1]
    theirs, ours = twins(kind, channels, **options)
    inputs = [rows.requires_grad_() for rows in (*(x if isinstance(x, tuple) else (x,)), edge_attr) if rows is not None]
    expected, (listed, expected_alpha) = theirs(x, edge_index, edge_attr, return_attention_weights=True)
    out, (edges, alpha) = ours(x, edge_index, edge_attr, return_attention_weights=True)
    fused = ours(x, edge_index, edge_attr)

    assert torch.equal(edges, listed)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close((out, fused, alpha), (expected, expected, expected_alpha), **close)
    wanted = gradients(theirs, expected, inputs)
    for result in (out, fused):
        torch.testing.assert_close(gradients(ours, result, inputs), wanted, **close)


@each
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_equals_pyg(kind: type, options: dict[str, Any], sample: Any) -> None:
    s = sample()
    assert_same(kind, s.x, s.edge_index, s.edge_attr if options["edge_dim"] else None, **options)


@each
@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
@pytest.mark.parametrize("graph_kind", GRAPH_KINDS)
@pytest.mark.parametrize("loops", [False, True])
def test_equals_pyg_on_random_graphs(kind: type, bipartite: bool, graph_kind: str, loops: bool) -> None:
    graph = random_graph(4, graph_kind, bipartite=bipartite)
    x: Any = torch.randn(graph.num_sources, 5, dtype=torch.float64)
    if bipartite:
        x = (x, torch.randn(graph.num_targets, 6, dtype=torch.float64))
    edge_attr = torch.randn(graph.num_edges, 3, dtype=torch.float64)
    assert_same(kind, x, graph.edge_index, edge_attr, heads=2, edge_dim=3, add_self_loops=loops, residual=True)
    assert_same(kind, x, graph.edge_index, None, heads=2, add_self_loops=loops, negative_slope=0.1)


@each
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("fill_value", FILL_VALUES, ids=lambda value: "tensor" if isinstance(value, Tensor) else None)
def test_edge_features_of_self_loops(kind: type, fill_value: Any, flow: str, sample: Any) -> None:
    s = sample(edges=12)  # some nodes have no in-edge, or only a loop
    assert_same(kind, s.x, s.edge_index, s.edge_attr, heads=2, edge_dim=3, fill_value=fill_value, flow=flow)


@each
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("fill_value", FILL_VALUES, ids=lambda value: "tensor" if isinstance(value, Tensor) else None)
def test_loops_of_fixed_size(kind: type, fill_value: Any, flow: str, sample: Any, monkeypatch: Any) -> None:
    """Where no size may depend on values, as in compiled code, replaced loops stay on the list with weight 0."""
    s = sample(edges=12)
    inputs = [s.x.requires_grad_(), s.edge_attr.requires_grad_()]
    conv = kind(6, CHANNELS, heads=2, edge_dim=3, fill_value=fill_value, flow=flow).double()
    expected, (listed, weights) = conv(s.x, s.edge_index, s.edge_attr, return_attention_weights=True)
    monkeypatch.setattr(_self_loops, "_sizes_are_fixed", lambda like: True)
    edge_index = s.edge_index.clone()  # not the one that is remembered
    out, (edges, alpha) = conv(s.x, edge_index, s.edge_attr, return_attention_weights=True)
    fused = conv(s.x, edge_index, s.edge_attr)

    is_loop = s.edge_index[0] == s.edge_index[1]
    assert is_loop.any() and torch.equal(edges[:, :12], s.edge_index) and not alpha[:12][is_loop].any()
    kept = torch.cat([~is_loop, torch.ones(7, dtype=torch.bool)])
    assert torch.equal(edges[:, kept], listed)
    torch.testing.assert_close((out, fused, alpha[kept]), (expected, expected, weights))
    wanted = gradients(conv, expected, inputs)
    for result in (out, fused):
        torch.testing.assert_close(gradients(conv, result, inputs), wanted)


@each
@pytest.mark.parametrize("loops", [False, True])
def test_the_flow_turns_edges_only(kind: type, loops: bool, sample: Any) -> None:
    """Pairs of features, projections and sizes are those of sources and targets; PyG takes one size for the other."""
    s = sample(5, targets=8)
    options: dict[str, Any] = {"heads": 2, "edge_dim": 3, "fill_value": 1.0, "add_self_loops": loops}
    straight = kind((6, 6), CHANNELS, **options).double()
    turned = kind((6, 6), CHANNELS, flow="target_to_source", **options).double()
    turned.load_state_dict(straight.state_dict())
    x, edge_index = (s.x, s.x_target), s.edge_index.flip(0)
    expected, (listed, alpha) = straight(x, s.edge_index, s.edge_attr, size=(5, 8), return_attention_weights=True)
    out, (edges, weights) = turned(x, edge_index, s.edge_attr, size=(8, 5), return_attention_weights=True)
    torch.testing.assert_close((out, weights), (expected, alpha))
    assert torch.equal(edges, listed.flip(0))


@pytest.mark.parametrize("loops", [False, True])
def test_the_flow_turns_the_size_of_targets_without_features(loops: bool, sample: Any) -> None:
    s = sample(5, targets=8)
    straight = GATConv((6, 3), CHANNELS, add_self_loops=loops).double()
    turned = GATConv((6, 3), CHANNELS, add_self_loops=loops, flow="target_to_source").double()
    turned.load_state_dict(straight.state_dict())
    expected = straight((s.x, None), s.edge_index, size=(5, 8))
    torch.testing.assert_close(turned((s.x, None), s.edge_index.flip(0), size=(8, 5)), expected)


@pytest.mark.parametrize("size", [None, (5, 5)])
@pytest.mark.parametrize("loops", [False, True])
def test_targets_of_gat_may_have_no_features(loops: bool, size: Any, sample: Any) -> None:
    s = sample(5)
    theirs, ours = twins(GATConv, (6, 3), heads=2, add_self_loops=loops, residual=True)
    expected = theirs((s.x, None), s.edge_index, size=size)
    torch.testing.assert_close(ours((s.x, None), s.edge_index, size=size), expected)
    more = sample(5, targets=8)
    out = ours((more.x, None), more.edge_index, size=(5, 8))
    torch.testing.assert_close(out, theirs((more.x, None), more.edge_index, size=(5, 8)))
    assert out.shape == (8, 2 * CHANNELS)


@pytest.mark.parametrize("pair", [False, True])
def test_shared_weights(pair: bool, sample: Any) -> None:
    s = sample()
    theirs, ours = twins(GATv2Conv, (6, 6) if pair else 6, heads=2, share_weights=True)
    assert ours.lin_r is ours.lin_l
    x = (s.x, s.x.flip(0)) if pair else s.x
    expected, out = theirs(x, s.edge_index), ours(x, s.edge_index)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(ours, out, []), gradients(theirs, expected, []))


@each
@pytest.mark.parametrize("pair", [False, True])
def test_hooks_on_projections_are_obeyed(kind: type, pair: bool, sample: Any) -> None:
    """GATConv multiplies weights with each other where it can; who changes a projection must be seen."""
    s = sample()
    theirs, ours = twins(kind, (6, 6) if pair else 6, heads=2, edge_dim=3, add_self_loops=False)
    x = (s.x, s.x.flip(0)) if pair else s.x
    plain = ours(x, s.edge_index, s.edge_attr)
    for conv in (theirs, ours):
        for name, child in conv.named_children():
            if name.startswith("lin"):
                child.register_forward_hook(lambda module, inputs, out: out.sin())
    out = ours(x, s.edge_index, s.edge_attr)
    torch.testing.assert_close(out, theirs(x, s.edge_index, s.edge_attr))
    assert not torch.allclose(out, plain)


@each
def test_a_node_without_in_edges_gets_the_bias(kind: type) -> None:
    conv = kind(6, CHANNELS, heads=2, add_self_loops=False)
    nn.init.normal_(conv.bias)
    x = torch.randn(3, 6, requires_grad=True)
    out = conv(x, torch.tensor([[0, 1], [1, 0]]))
    assert torch.equal(out[2], conv.bias)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert grad.isfinite().all() and torch.equal(grad[2], torch.zeros(6))


@each
def test_loops_of_a_graph_that_has_them(kind: type, sample: Any) -> None:
    """The builder of graphs does what the layer would do."""
    s = sample()
    conv = kind(6, CHANNELS, heads=2).double()
    expected = conv(s.x, s.edge_index)
    graph = TokenGraph.from_edge_index(s.edge_index, 7)
    torch.testing.assert_close(conv(s.x, graph), expected)
    torch.testing.assert_close(conv(s.x, graph.with_self_loops()), expected)
    conv.add_self_loops = False
    torch.testing.assert_close(conv(s.x, graph.with_self_loops()), expected)


STATES: list[tuple[type, Any, dict[str, Any]]] = [
    (GATConv, 6, {}),
    (GATConv, (6, 5), {"edge_dim": 3, "residual": True, "concat": False}),
    (GATv2Conv, 6, {"edge_dim": 3, "residual": True}),
    (GATv2Conv, (6, 5), {"bias": False}),
    (GATv2Conv, 6, {"share_weights": True}),
]


@pytest.mark.parametrize(("kind", "channels", "options"), STATES)
def test_state_dicts_load_both_ways(kind: type, channels: Any, options: dict[str, Any]) -> None:
    theirs = PYG[kind](channels, CHANNELS, heads=2, **options)
    ours = kind(channels, CHANNELS, heads=2, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


@pytest.mark.parametrize(("kind", "channels", "options"), STATES)
def test_the_same_seed_draws_pygs_parameters(kind: type, channels: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = PYG[kind](channels, CHANNELS, heads=2, **options)
    torch.manual_seed(3)
    ours = kind(channels, CHANNELS, heads=2, **options)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@each
def test_pygs_arguments_by_position(kind: type, sample: Any) -> None:
    args: tuple[Any, ...] = (6, CHANNELS, 2, False, 0.3, 0.25, True, 3, "max", True, True)
    theirs, ours = PYG[kind](*args), kind(*args)
    for name, value in vars(theirs).items():
        if name != "aggr" and not name.startswith("_") and isinstance(value, (int, float, str, bool)):
            assert getattr(ours, name) == value, name
    assert repr(ours) == repr(theirs) == f"{kind.__name__}(6, {CHANNELS}, heads=2)"
    s = sample(dtype=torch.float32)
    ours.eval(), theirs.eval()
    ours.load_state_dict(theirs.state_dict())
    # x, edge_index, edge_attr, and then size, if it is GATConv, and return_attention_weights
    inputs = (s.x, s.edge_index, s.edge_attr, *((None,) if kind is GATConv else ()), True)
    torch.testing.assert_close(ours(*inputs), theirs(*inputs))


def largest_kept(conv: nn.Module, *inputs: Tensor | None) -> int:
    """Elements of the largest tensor that the forward pass keeps for the backward pass."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        conv(*inputs)
    return max(kept)


@pytest.mark.parametrize(("kind", "edge_dim"), [(GATConv, None), (GATConv, 3), (GATv2Conv, None)])
def test_no_edge_by_head_by_channel_tensor_is_kept(kind: type, edge_dim: int | None, sample: Any) -> None:
    edges, heads, channels = 500, 4, 16
    s = sample(8, edges)
    options = {"heads": heads, "edge_dim": edge_dim}
    inputs = (s.x.requires_grad_(), s.edge_index, s.edge_attr if edge_dim else None)
    theirs, ours = (cls(6, channels, **options).double() for cls in (PYG[kind], kind))
    assert largest_kept(theirs, *inputs) >= edges * heads * channels * 0.8  # less the loops that it drops
    assert largest_kept(ours, *inputs) < edges * heads * channels / 4
