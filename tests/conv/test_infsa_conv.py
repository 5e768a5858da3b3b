"""InfSAConv: PyG's conventions, and the formula by hand in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, patterns
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.testing import require_or_skip

require_or_skip("pyg")

from torch_geometric import EdgeIndex  # noqa: E402
from torch_geometric.data import Batch, Data  # noqa: E402
from torch_geometric.explain import Explainer, GNNExplainer  # noqa: E402
from torch_geometric.nn import MessagePassing, to_hetero  # noqa: E402
from torch_geometric.utils import to_torch_csr_tensor  # noqa: E402

from graphattn.conv import InfSAConv  # noqa: E402

HOPS = pytest.mark.parametrize("hops", [1, 3, None])


def layer(channels: Any = 6, **options: Any) -> InfSAConv:
    return InfSAConv(channels, 4, **{"heads": 2, **options}).double()


def by_hand(conv: InfSAConv, x: Tensor, x_target: Tensor, edges: Tensor, attr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and weights of one graph."""
    source, target = edges
    q, k, v = (
        lin(rows).view(-1, 2, 4) for lin, rows in ((conv.lin_query, x_target), (conv.lin_key, x), (conv.lin_value, x))
    )
    score = (q[target] * k[source]).sum(-1) / 4
    if attr is not None:
        score = score + attr @ conv.lin_edge.weight.T
    score = score.relu()
    alpha = conv.gamma.theta.sigmoid() * score / (score.square().sum(0).sqrt() + 1e-6)
    step = torch.zeros(2, len(x_target), len(x), dtype=x.dtype)
    for head in range(2):
        step[head].index_put_((target, source), alpha[:, head], accumulate=True)
    if conv.hops is None:
        out = torch.einsum("hts,shc->thc", torch.linalg.inv(torch.eye(len(x)).double() - step) @ step, v)
    else:
        out, power = torch.zeros(len(x_target), 2, 4).double(), v
        for _ in range(conv.hops):
            power = torch.einsum("hts,shc->thc", step, power)
            out = out + power
    return out.flatten(1) + conv.lin_skip(x_target), alpha


@HOPS
@pytest.mark.parametrize("edge_dim", [None, 3])
def test_by_hand(hops: int | None, edge_dim: int | None, sample: Any) -> None:
    s = sample(5, 9)
    conv = layer(hops=hops, edge_dim=edge_dim)
    attr = s.edge_attr if edge_dim else None
    expected, weights = by_hand(conv, s.x, s.x, s.edge_index, attr)
    torch.testing.assert_close(conv(s.x, s.edge_index, attr), expected, rtol=1e-7, atol=1e-9)
    out, (edge_index, alpha) = conv(s.x, s.edge_index, attr, return_attention_weights=True)
    torch.testing.assert_close(out, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(alpha, weights)
    assert edge_index is s.edge_index
    for false in (None, False, 0):
        assert isinstance(conv(s.x, s.edge_index, attr, return_attention_weights=false), Tensor)


def test_bipartite(sample: Any) -> None:
    s = sample(5, 30, targets=8)
    conv = layer((6, 6), edge_dim=3)
    expected, weights = by_hand(conv, s.x, s.x_target, s.edge_index, s.edge_attr)
    given = ((s.x, s.x_target), s.edge_index, s.edge_attr)
    torch.testing.assert_close(conv(*given, size=(5, 8)), expected)
    torch.testing.assert_close(conv(*given, return_attention_weights=True)[1][1], weights)
    with pytest.raises(ArgumentError, match="square"):
        layer(hops=2)((s.x, s.x_target), s.edge_index)


@HOPS
def test_forms_of_edge_index(hops: int | None, sample: Any) -> None:
    s = sample(7, 20)
    edges = torch.unique(s.edge_index, dim=1).contiguous()
    conv, n = layer(hops=hops), 7
    expected = conv(s.x, edges)
    torch.testing.assert_close(conv(s.x, EdgeIndex(edges, sparse_size=(n, n))), expected)
    torch.testing.assert_close(conv(s.x, TokenGraph.from_edge_index(edges, n)), expected)
    torch.testing.assert_close(conv(s.x, to_torch_csr_tensor(edges.flip(0), size=n)), expected)
    turned = layer(hops=hops, flow="target_to_source")
    turned.load_state_dict(conv.state_dict())
    torch.testing.assert_close(turned(s.x, edges.flip(0)), expected)
    everything = patterns.complete(n)
    torch.testing.assert_close(conv(s.x, everything), conv(s.x, everything.edge_index), rtol=1e-7, atol=1e-9)


@HOPS
def test_a_batch_is_its_members(hops: int | None, sample: Any) -> None:
    conv = layer(hops=hops, edge_dim=3)
    members = [sample(5, 12, seed=1), sample(8, 20, seed=2)]
    batch = Batch.from_data_list([Data(x=m.x, edge_index=m.edge_index, edge_attr=m.edge_attr) for m in members])
    singles = torch.cat([conv(m.x, m.edge_index, m.edge_attr) for m in members])
    given = (batch.x, batch.edge_index, batch.edge_attr)
    for _ in range(2):
        torch.testing.assert_close(conv(*given, batch=batch.batch), singles)
    torch.testing.assert_close(conv(batch.x, TokenGraph.from_pyg(batch), batch.edge_attr), singles)
    assert not torch.allclose(conv(*given), singles)  # one graph of all nodes has one norm
    pair = conv((batch.x, batch.x), *given[1:], batch=(batch.batch, batch.batch.clone()))
    torch.testing.assert_close(pair, singles)
    with pytest.raises(ArgumentError, match="batch must be None for a TokenGraph that knows its members"):
        conv(batch.x, TokenGraph.from_pyg(batch), batch.edge_attr, batch=batch.batch)
    with pytest.raises(ArgumentError, match="batch must have an entry for each of 13 sources, got \\[5\\]"):
        conv(*given, batch=batch.batch[:5])
    with pytest.raises(ArgumentError, match="batch must ascend"):
        conv(*given, batch=batch.batch.flip(0))
    with pytest.raises(ArgumentError, match="batch must ascend from 0"):
        conv(*given, batch=batch.batch - 1)
    with pytest.raises(ArgumentError, match="no edge may join two members"):
        conv(*given, batch=torch.arange(13) // 3)
    with pytest.raises(ArgumentTypeError, match="batch must be an int64 tensor"):
        conv(*given, batch=batch.batch.float())


@HOPS
def test_gradcheck(hops: int | None, sample: Any) -> None:
    s = sample(4, 9)
    edges = torch.unique(s.edge_index, dim=1).contiguous()
    conv = layer(hops=hops)
    names = [name for name, _ in conv.named_parameters()]
    assert "gamma.theta" in names
    values = [parameter.detach().requires_grad_() for parameter in conv.parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(conv, dict(zip(names, parameters, strict=True)), (x, edges))

    assert torch.autograd.gradcheck(run, (s.x.requires_grad_(), *values))


@HOPS
def test_permuting_the_nodes_permutes_the_output(hops: int | None, sample: Any) -> None:
    s, conv = sample(), layer(hops=hops, edge_dim=3)
    order = torch.randperm(s.x.shape[0])
    out = conv(s.x, s.edge_index, s.edge_attr)
    torch.testing.assert_close(conv(s.x[order], torch.argsort(order)[s.edge_index], s.edge_attr), out[order])


def test_construction(sample: Any) -> None:
    conv = layer((6, 5), concat=False)
    assert isinstance(conv, MessagePassing) and repr(conv) == "InfSAConv((6, 5), 4, heads=2)"
    assert repr(copy.deepcopy(conv)) == repr(conv)
    s = sample(dtype=torch.float32)
    assert InfSAConv(-1, 4, heads=3, concat=False, edge_dim=-1)(s.x, s.edge_index, s.edge_attr).shape == (7, 4)
    assert InfSAConv(6, 4, root_weight=False).lin_skip is None
    torch.testing.assert_close(InfSAConv(6, 4, heads=2, gamma=0.7).gamma(), torch.tensor([0.7, 0.7]))
    assert not any("gamma" in name for name, _ in InfSAConv(6, 4, learn_gamma=False).named_parameters())
    for options, text in (
        ({"hops": 0}, "hops must be a positive number, or None for all, got 0"),
        ({"gamma": 1.5}, "gamma must lie between 0 and 1"),
        ({"aggr": "mean"}, "aggr"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ArgumentError, match=text):
            InfSAConv(6, 4, **options)


def test_reset_parameters_draws_all_anew() -> None:
    conv = layer(edge_dim=3)
    for parameter in conv.parameters():
        torch.nn.init.constant_(parameter, 9.0)
    torch.manual_seed(5)
    conv.reset_parameters()
    after = copy.deepcopy(conv.state_dict())
    assert all(not (value == 9.0).any() for value in after.values())
    torch.manual_seed(5)
    conv.reset_parameters()
    assert all(torch.equal(conv.state_dict()[name], after[name]) for name in after)


def test_dropout_acts_in_training_only_and_keeps_the_mean() -> None:
    ring = torch.stack([torch.arange(400), torch.arange(400).roll(1)])
    conv, x = layer(dropout=0.25, root_weight=False), torch.randn(400, 6).double()
    torch.manual_seed(1)
    first, (_, alpha) = conv(x, ring, return_attention_weights=True)
    torch.manual_seed(1)
    torch.testing.assert_close(conv(x, ring), first)
    assert not torch.equal(conv(x, ring), first)
    full, (_, whole) = conv.eval()(x, ring, return_attention_weights=True)
    torch.testing.assert_close(alpha, whole)  # before dropout
    some = full.abs() > 1e-12
    ratio = first[some] / full[some]
    assert ((ratio.abs() < 1e-9) | ((ratio - 4 / 3).abs() < 1e-9)).all()
    assert abs((ratio.abs() < 1e-9).double().mean() - 0.25) < 0.1


def test_an_explainer_sees_the_messages(sample: Any) -> None:
    s, conv = sample(dtype=torch.float32), InfSAConv(6, 4, heads=2, edge_dim=3)
    expected = conv(s.x, s.edge_index, s.edge_attr)
    hook = conv.register_message_forward_hook(lambda _, inputs, output: output)
    torch.testing.assert_close(conv(s.x, s.edge_index, s.edge_attr), expected)
    hook.remove()
    explainer = Explainer(
        conv.eval(),
        GNNExplainer(epochs=3),
        explanation_type="model",
        node_mask_type="attributes",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "node", "return_type": "raw"},
    )
    found = explainer(s.x, s.edge_index, edge_attr=s.edge_attr)
    assert found.edge_mask.shape == (30,) and found.edge_mask.isfinite().all()
    many = InfSAConv(6, 4, hops=2)
    many.register_message_forward_hook(lambda _, inputs, output: output)
    with pytest.raises(ArgumentError, match="sees the messages of one hop, this layer has hops=2"):
        many(s.x, s.edge_index)


def test_to_hetero() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = InfSAConv((-1, -1), 4, heads=2)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index)

    net = to_hetero(Net(), (["a", "b"], [("a", "to", "b"), ("b", "to", "a")]))
    x = {"a": torch.randn(3, 6), "b": torch.randn(4, 5)}
    edges = {("a", "to", "b"): torch.tensor([[0, 2], [3, 1]]), ("b", "to", "a"): torch.tensor([[3, 1], [0, 2]])}
    assert {name: list(out.shape) for name, out in net(x, edges).items()} == {"a": [3, 8], "b": [4, 8]}


@HOPS
def test_autocast(hops: int | None, sample: Any) -> None:
    s = sample(20, 80, dtype=torch.float32)
    conv = InfSAConv(6, 4, heads=2, hops=hops, edge_dim=3)
    expected = conv(s.x, s.edge_index, s.edge_attr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(s.x, s.edge_index, s.edge_attr)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in conv.parameters())


@pytest.mark.parametrize(("hops", "as_graph"), [(1, False), (3, True)])
def test_compiled_whole(hops: int, as_graph: bool, sample: Any) -> None:
    torch._dynamo.reset()
    s = sample(9, 30, dtype=torch.float32)
    conv = InfSAConv(6, 4, heads=2, hops=hops, edge_dim=3)
    edges = TokenGraph.from_edge_index(s.edge_index, 9).prepare() if as_graph else s.edge_index
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    results = []
    for module in (conv, compiled):
        out = module(s.x, edges, s.edge_attr)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(conv.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
