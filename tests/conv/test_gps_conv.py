"""GPSConv: PyG's own layer as the reference, other mechanisms and graphs, batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphattn import patterns
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import MECHANISMS
from graphattn.testing import random_graph, require_or_skip

require_or_skip("pyg")

from torch_geometric import nn as pyg  # noqa: E402

from graphattn.conv import GPSConv, InfSAConv  # noqa: E402

WIDTH, HEADS = 8, 2
KINDS = ["multihead", "graph_transformer", "gated_gcn"]


def gine() -> nn.Module:
    return pyg.GINEConv(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)))


LOCAL: dict[str, Any] = {
    "none": lambda: None,
    "gine": gine,
    "res_gated": lambda: pyg.ResGatedGraphConv(WIDTH, WIDTH, edge_dim=WIDTH),
}


class Batch:
    """A ragged batch in float64; one of its graphs has one node, one has no edges."""

    def __init__(self, sizes: tuple[int, ...] = (5, 1, 4, 7), seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.sizes = sizes
        self.batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.ptr = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
        same = self.batch[:, None] == self.batch[None, :]
        keep = same & (torch.rand(same.shape, generator=random) < 0.4) & (self.batch[:, None] != 2)
        target, source = keep.nonzero(as_tuple=True)
        self.edge_index = torch.stack([source, target])
        self.x = torch.randn(sum(sizes), WIDTH, generator=random, dtype=torch.float64)
        self.edge_attr = torch.randn(len(source), WIDTH, generator=random, dtype=torch.float64)

    def local(self, conv: nn.Module) -> dict[str, Tensor]:
        return {} if conv.conv is None else {"edge_attr": self.edge_attr}


def pair(local: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Our layer and PyG's, with PyG's state."""
    theirs = pyg.GPSConv(WIDTH, LOCAL[local](), heads=HEADS, **options)
    ours = GPSConv(WIDTH, LOCAL[local](), heads=HEADS, **options)
    for parameter in theirs.parameters():  # biases and norms are zeros and ones at first
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours.double(), theirs.double()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("local", LOCAL)
def test_equal_to_pyg_in_value_and_gradient(local: str, training: bool) -> None:
    ours, theirs = (layer.train(training) for layer in pair(local))
    b = Batch()
    results = []
    for layer in (ours, theirs):
        x = b.x.clone().requires_grad_()
        out = layer(x, b.edge_index, b.batch, **b.local(layer))
        slope = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        leaves = [x, *layer.parameters()]  # norm1 has no use where there is no local layer
        grads = torch.autograd.grad((out * slope).sum(), leaves, allow_unused=True, materialize_grads=True)
        results.append((out, *grads))
    names = ["out", "x", *(name for name, _ in ours.named_parameters())]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for name, got, expected in zip(names, *results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    for got, expected in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": None},
        {"norm": "layer_norm"},  # takes the batch
        {"norm": "graph_norm", "act": "leaky_relu", "act_kwargs": {"negative_slope": 0.3}},
        {"norm_kwargs": {"momentum": 0.3}},
        {"attn_kwargs": {"bias": False}},
    ],
    ids=str,
)
def test_equal_to_pyg_with_other_options(options: dict[str, Any]) -> None:
    ours, theirs = pair("gine", **options)
    b = Batch()
    got, expected = (layer(b.x, b.edge_index, b.batch, edge_attr=b.edge_attr) for layer in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    alone = [layer(b.x[:5], b.edge_index[:, :0], edge_attr=b.edge_attr[:0]) for layer in (ours, theirs)]
    torch.testing.assert_close(*alone, rtol=1e-9, atol=1e-9)


def test_a_seed_gives_the_initial_values_that_it_gives_pyg() -> None:
    layers = []
    for make in (GPSConv, pyg.GPSConv):
        torch.manual_seed(3)
        layers.append(make(WIDTH, gine(), heads=HEADS))
    for name, parameter in layers[1].named_parameters():
        assert torch.equal(layers[0].get_parameter(name), parameter), name
    before = [parameter.clone() for parameter in layers[0].attn.parameters() if parameter.any()]
    layers[0].reset_parameters()
    after = [parameter for parameter in layers[0].attn.parameters() if parameter.any()]
    assert len(after) == 2 and not any(torch.equal(*both) for both in zip(before, after, strict=True))


def test_dropout_of_attn_kwargs_is_on_the_attention_weights() -> None:
    conv = GPSConv(WIDTH, None, heads=HEADS, norm=None, attn_kwargs={"dropout": 0.5})
    assert conv.attn.attention_dropout == 0.5 and conv.attn.dropout.p == 0.0
    x = torch.randn(6, WIDTH)
    assert not torch.equal(conv(x, None), conv(x, None))
    conv.eval()
    assert torch.equal(conv(x, None), conv(x, None))


@pytest.mark.parametrize("kind", KINDS)
def test_any_mechanism_by_name_or_as_a_module(kind: str) -> None:
    b = Batch()
    torch.manual_seed(0)
    named = GPSConv(WIDTH, gine(), heads=HEADS, attn_type=kind).double()
    torch.manual_seed(0)
    given = GPSConv(WIDTH, gine(), attn_type=MECHANISMS.get(kind)(WIDTH, HEADS)).double()
    given.load_state_dict(named.state_dict())
    outs = [conv(b.x, b.edge_index, b.batch, edge_attr=b.edge_attr) for conv in (named, given)]
    assert torch.equal(*outs)
    assert kind in repr(named)


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_may_be_renumbered(kind: str) -> None:
    b = Batch()
    conv = GPSConv(WIDTH, gine(), heads=HEADS, attn_type=kind).double()
    out = conv(b.x, b.edge_index, b.batch, edge_attr=b.edge_attr)
    order = torch.cat([begin + torch.randperm(size) for begin, size in zip(b.ptr.tolist(), b.sizes, strict=False)])
    edges = torch.randperm(b.edge_index.shape[1])
    moved = conv(b.x[order], order.argsort()[b.edge_index[:, edges]], b.batch, edge_attr=b.edge_attr[edges])
    torch.testing.assert_close(moved, out[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_a_batch_do_not_meet(kind: str) -> None:
    """In evaluation: NaN in one graph leaves the bits of the others as they are, and each equals itself alone."""
    b = Batch()
    conv = GPSConv(WIDTH, gine(), heads=HEADS, attn_type=kind).double().eval()
    out = conv(b.x, b.edge_index, b.batch, edge_attr=b.edge_attr)
    for victim in range(len(b.sizes)):
        mine = b.batch == victim
        x = torch.where(mine[:, None], torch.full_like(b.x, float("nan")), b.x)
        assert torch.equal(conv(x, b.edge_index, b.batch, edge_attr=b.edge_attr)[~mine], out[~mine])
        edges = mine[b.edge_index[1]]
        inside = b.edge_index[:, edges] - b.ptr[victim]
        alone = conv(b.x[mine], inside, edge_attr=b.edge_attr[edges])
        torch.testing.assert_close(alone, out[mine], rtol=1e-9, atol=1e-9)


def test_a_given_graph_and_its_edge_rows() -> None:
    b = Batch()
    conv = GPSConv(WIDTH, None, heads=HEADS, attn_kwargs={"edge_width": 3}).double()
    edge = torch.randn(b.edge_index.shape[1], 3, dtype=torch.float64)
    graph = TokenGraph.from_edge_index(b.edge_index, len(b.x))
    out = conv(b.x, None, b.batch, attn_graph=graph, attn_edge=edge)
    order = torch.randperm(graph.num_edges)
    again = TokenGraph.from_edge_index(b.edge_index[:, order], len(b.x))
    torch.testing.assert_close(conv(b.x, None, b.batch, attn_graph=again, attn_edge=edge[order]), out)
    assert not torch.allclose(conv(b.x, None, b.batch, attn_graph=graph, attn_edge=edge + edge.flip(0)), out)


def test_a_shared_complete_graph_is_the_default() -> None:
    b = Batch()
    conv = GPSConv(WIDTH, None, heads=HEADS).double()
    shared = patterns.blocks(b.ptr)
    torch.testing.assert_close(conv(b.x, None, attn_graph=shared), conv(b.x, None, b.batch), rtol=1e-12, atol=1e-12)


def test_layers_share_the_complete_graphs_of_a_batch() -> None:
    from graphattn.conv.gps_conv import complete_graphs

    x, batch = torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 1])
    first = complete_graphs(x, batch)
    assert complete_graphs(torch.randn(5, 4), batch) is first
    batch[1] = 1  # changed in place: another graph
    second = complete_graphs(x, batch)
    assert second is not first and second.target_ptr.tolist() == [0, 1, 5]


def test_gradients_reach_everything() -> None:
    b = Batch()
    conv = GPSConv(WIDTH, gine(), heads=HEADS, norm=None).double()
    x, edge_attr = b.x.requires_grad_(), b.edge_attr.requires_grad_()

    def run(x: Tensor, edge_attr: Tensor) -> Tensor:
        return conv(x, b.edge_index, b.batch, edge_attr=edge_attr)

    assert torch.autograd.gradcheck(run, (x, edge_attr), fast_mode=True)


def test_autocast() -> None:
    b = Batch()
    conv = GPSConv(WIDTH, gine(), heads=HEADS).eval()
    exact = conv(b.x.float(), b.edge_index, b.batch, edge_attr=b.edge_attr.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = conv(b.x.float(), b.edge_index, b.batch, edge_attr=b.edge_attr.float())
    torch.testing.assert_close(mixed.float(), exact, rtol=0.1, atol=0.1)


def test_compile() -> None:
    torch._dynamo.reset()
    conv = GPSConv(WIDTH, gine(), heads=HEADS)
    compiled = torch.compile(conv, fullgraph=True, dynamic=True, backend="eager")
    for sizes in ((3, 5), (4, 1, 6)):
        b = Batch(sizes)
        given = (b.x.float(), b.edge_index)
        options = {"attn_graph": patterns.blocks(b.ptr), "edge_attr": b.edge_attr.float()}
        torch.testing.assert_close(compiled(*given, **options), conv(*given, **options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"attn_type": "performer"}, ArgumentError, "unknown mechanism 'performer'"),
        ({"attn_type": 3}, ArgumentTypeError, "attn_type must be a name or a Mechanism, got int"),
        ({"attn_kwargs": {"kdim": 4}}, ArgumentError, "attn_kwargs must be arguments of MultiheadAttention.*kdim"),
        ({"heads": 3}, ArgumentError, "width must be a positive multiple of heads"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        GPSConv(WIDTH, None, **options)


def test_bad_inputs() -> None:
    conv, b = GPSConv(WIDTH, None), Batch()
    with pytest.raises(ArgumentError, match="batch must be \\[N\\]"):
        conv(b.x.float(), None, b.batch[1:])
    with pytest.raises(ArgumentError, match="batch must ascend"):
        conv(b.x.float(), None, b.batch.flip(0))
    with pytest.raises(ArgumentError, match="x must be"):
        conv(b.x.float(), None, attn_graph=random_graph(0))
    with pytest.raises(ArgumentError, match="made without edge rows, got edge=\\[2, 3\\]"):
        conv(b.x.float(), None, b.batch, attn_edge=torch.zeros(2, 3))
    module = MECHANISMS.get("multihead")(WIDTH, 2)
    with pytest.raises(ArgumentError, match="attn_kwargs are for a mechanism given by name"):
        GPSConv(WIDTH, None, attn_type=module, attn_kwargs={"bias": False})


@pytest.mark.parametrize("as_graph", [False, True])
def test_a_local_layer_that_asks_for_the_graph_of_each_node_is_told(as_graph: bool) -> None:
    data = Batch()
    conv = GPSConv(WIDTH, InfSAConv(WIDTH, WIDTH // HEADS, heads=HEADS), heads=HEADS, norm=None).double().eval()
    graph = TokenGraph.from_edge_index(data.edge_index, ptr=data.ptr)
    out = conv(data.x, graph if as_graph else data.edge_index, data.batch)
    at = data.batch[data.edge_index[1]]
    own = [
        conv(rows, data.edge_index[:, at == number] - data.ptr[number])
        for number, rows in enumerate(data.x.split(data.sizes))
    ]
    torch.testing.assert_close(out, torch.cat(own))
