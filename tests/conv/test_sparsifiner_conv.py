"""SparsifinerConv: PyG's conventions, the choice and the formula by hand in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph, patterns
from graphattn.errors import ArgumentError
from graphattn.testing import require_or_skip

require_or_skip("pyg")

from torch_geometric import EdgeIndex  # noqa: E402
from torch_geometric.data import Batch, Data  # noqa: E402
from torch_geometric.explain import Explainer, GNNExplainer  # noqa: E402
from torch_geometric.nn import MessagePassing  # noqa: E402
from torch_geometric.utils import to_torch_csr_tensor  # noqa: E402

from graphattn.conv import SparsifinerConv, TransformerConv  # noqa: E402
from graphattn.insight import selection_quality  # noqa: E402
from graphattn.mechanisms.reconstruction import predictor_parameters, reconstruct, reconstruction_loss  # noqa: E402

WITH_EDGES = pytest.mark.parametrize("edge_dim", [None, 3])


def layer(channels: Any = 6, **options: Any) -> SparsifinerConv:
    torch.manual_seed(0)
    return SparsifinerConv(channels, 4, **{"heads": 2, "keep": 0.5, **options}).double()


def by_hand(conv: SparsifinerConv, x: Tensor, x_target: Tensor, edges: Tensor, attr: Tensor | None) -> Any:
    """Output and weights of one graph, edge by edge."""
    source, target = edges
    q, k, v = (
        lin(rows).view(-1, 2, 4) for lin, rows in ((conv.lin_query, x_target), (conv.lin_key, x), (conv.lin_value, x))
    )
    p: Any = conv.predictor
    pooled = torch.einsum("nhr,nhc->hrc", (k @ p.down).softmax(0), k)
    basis = (k @ p.up).softmax(0)
    coefficients = (torch.einsum("nhc,hrc->nhr", q, pooled) / 2.0).softmax(-1)
    least = coefficients.topk(8, -1).values[..., -1:]
    ranking = (coefficients.where(coefficients >= least, 0.0)[target] * basis[source]).sum(-1)
    score = (q[target] * k[source]).sum(-1) / 2.0
    if attr is not None:
        score = score + attr @ conv.lin_edge.weight.T
    alpha = torch.zeros_like(score)
    for node in range(len(x_target)):
        mine = (target == node).nonzero().squeeze(1)
        budget = min(conv.keys, len(mine)) if conv.keys else math.ceil(conv.keep * len(mine))
        for head in range(2):
            best = mine[ranking[mine, head].argsort(descending=True, stable=True)[:budget]]
            alpha[best, head] = score[best, head].softmax(0)
    out = torch.zeros(len(x_target), 2, 4).double().index_add(0, target, alpha.unsqueeze(-1) * v[source])
    return out.flatten(1) + conv.lin_skip(x_target), alpha


def simple(s: Any) -> Any:
    """Without duplicate edges, of which either may be kept."""
    edges = torch.unique(s.edge_index, dim=1).contiguous()
    return s._replace(edge_index=edges[:, torch.randperm(edges.shape[1])], edge_attr=s.edge_attr[: edges.shape[1]])


@WITH_EDGES
@pytest.mark.parametrize("options", [{}, {"keys": 2}, {"keep": 1.0}])
def test_by_hand(edge_dim: int | None, options: dict[str, Any], sample: Any) -> None:
    s = simple(sample(6, 25))
    conv = layer(edge_dim=edge_dim, **options)
    attr = s.edge_attr if edge_dim else None
    expected, weights = by_hand(conv, s.x, s.x, s.edge_index, attr)
    torch.testing.assert_close(conv(s.x, s.edge_index, attr), expected)
    out, (edge_index, alpha) = conv(s.x, s.edge_index, attr, return_attention_weights=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(alpha, weights)
    assert edge_index is s.edge_index


def test_keeping_all_is_transformer_conv(sample: Any) -> None:
    s, conv = sample(), layer(keep=1.0)
    plain = TransformerConv(6, 4, heads=2).double()
    plain.load_state_dict({key: value for key, value in conv.state_dict().items() if "predictor" not in key})
    torch.testing.assert_close(conv(s.x, s.edge_index), plain(s.x, s.edge_index))


def test_bipartite(sample: Any) -> None:
    s = simple(sample(5, 30, targets=8))
    conv = layer((6, 6), edge_dim=3)
    expected, weights = by_hand(conv, s.x, s.x_target, s.edge_index, s.edge_attr)
    given = ((s.x, s.x_target), s.edge_index, s.edge_attr)
    torch.testing.assert_close(conv(*given, size=(5, 8)), expected)
    torch.testing.assert_close(conv(*given, return_attention_weights=True)[1][1], weights)


def test_forms_of_edge_index(sample: Any) -> None:
    s = simple(sample(7, 20))
    conv, n = layer(), 7
    expected = conv(s.x, s.edge_index)
    torch.testing.assert_close(conv(s.x, EdgeIndex(s.edge_index, sparse_size=(n, n))), expected)
    torch.testing.assert_close(conv(s.x, TokenGraph.from_edge_index(s.edge_index, n)), expected)
    torch.testing.assert_close(conv(s.x, to_torch_csr_tensor(s.edge_index.flip(0), size=n)), expected)
    turned = layer(flow="target_to_source")
    turned.load_state_dict(conv.state_dict())
    torch.testing.assert_close(turned(s.x, s.edge_index.flip(0)), expected)
    everything = patterns.complete(n)
    torch.testing.assert_close(conv(s.x, everything), conv(s.x, everything.edge_index))


def test_a_batch_is_its_members(sample: Any) -> None:
    conv = layer(edge_dim=3)
    members = [simple(sample(5, 12, seed=1)), simple(sample(8, 20, seed=2))]
    batch = Batch.from_data_list([Data(x=m.x, edge_index=m.edge_index, edge_attr=m.edge_attr) for m in members])
    singles = torch.cat([conv(m.x, m.edge_index, m.edge_attr) for m in members])
    given = (batch.x, batch.edge_index, batch.edge_attr)
    torch.testing.assert_close(conv(*given, batch=batch.batch), singles)
    torch.testing.assert_close(conv(batch.x, TokenGraph.from_pyg(batch), batch.edge_attr), singles)
    pair = conv((batch.x, batch.x), *given[1:], batch=(batch.batch, batch.batch.clone()))
    torch.testing.assert_close(pair, singles)


def test_permuting_the_nodes_permutes_the_output(sample: Any) -> None:
    s, conv = simple(sample()), layer(edge_dim=3)
    order = torch.randperm(s.x.shape[0])
    out = conv(s.x, s.edge_index, s.edge_attr)
    torch.testing.assert_close(conv(s.x[order], torch.argsort(order)[s.edge_index], s.edge_attr), out[order])


def test_gradients_pass_by_the_predictor_and_reconstruction_reaches_it_alone(sample: Any) -> None:
    s, conv = simple(sample(12, 60)), layer(edge_dim=3, rank=6)
    conv(s.x, s.edge_index, s.edge_attr).square().sum().backward()
    assert all((p.grad is None) == ("predictor" in name) for name, p in conv.named_parameters())
    conv.zero_grad()
    optimizer = torch.optim.Adam(predictor_parameters(conv), lr=0.05)
    losses = []
    for _ in range(60):
        [found] = reconstruct(conv, s.x, s.edge_index, s.edge_attr)
        totals = torch.zeros(12, 2).double().index_add(0, s.edge_index[1], found.approximate.detach())
        torch.testing.assert_close(totals, (totals > 0).double())  # rows of a guess at attention
        loss = reconstruction_loss([found])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all((p.grad is not None) == ("predictor" in name) for name, p in conv.named_parameters())
    [after] = selection_quality(conv, s.x, s.edge_index, s.edge_attr)
    [before] = selection_quality(layer(edge_dim=3, rank=6), s.x, s.edge_index, s.edge_attr)
    assert after.recall > before.recall and after.best >= after.retained > before.retained


def test_an_explainer_sees_the_messages(sample: Any) -> None:
    s, conv = simple(sample()), layer().eval()
    expected = conv(s.x, s.edge_index)
    seen = []
    handle = conv.register_message_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    torch.testing.assert_close(conv(s.x, s.edge_index), expected)
    handle.remove()
    assert seen == [(s.edge_index.shape[1], 2, 4)]
    explainer = Explainer(
        conv.float(),
        GNNExplainer(epochs=2),
        explanation_type="model",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "node", "return_type": "raw"},
    )
    assert explainer(s.x.float(), s.edge_index).edge_mask.shape == (s.edge_index.shape[1],)


def test_construction(sample: Any) -> None:
    conv = layer((6, 5), concat=False)
    assert isinstance(conv, MessagePassing) and repr(conv) == "SparsifinerConv((6, 5), 4, heads=2)"
    assert repr(copy.deepcopy(conv)) == repr(conv)
    s = sample(dtype=torch.float32)
    lazy = SparsifinerConv(-1, 4, heads=3, concat=False, edge_dim=-1)
    assert lazy(s.x, s.edge_index, s.edge_attr).shape == (7, 4)
    assert SparsifinerConv(6, 4, root_weight=False).lin_skip is None
    before = {key: value.clone() for key, value in conv.state_dict().items()}
    conv.reset_parameters()
    changed = {key for key, value in conv.state_dict().items() if not torch.equal(value, before[key])}
    assert {"predictor.down", "predictor.up", "lin_key.weight"} <= changed
    for options, text in (
        ({"keep": 0.0}, r"keep must be a share in \(0, 1\], got 0.0"),
        ({"keys": 0}, "keys must be a positive int, got 0"),
        ({"keys": 2.5}, "keys must be a positive int, got 2.5"),
        ({"aggr": "mean"}, "aggr"),
        ({"rank": 0}, "rank must be positive"),
    ):
        with pytest.raises(ArgumentError, match=text):
            SparsifinerConv(6, 4, **options)
    heads = TokenGraph.per_head([TokenGraph.from_edge_index(s.edge_index, 7)] * 2)
    with pytest.raises(ArgumentError, match="leading"):
        layer()(s.x.double(), heads)


def test_dropout_acts_in_training_only(sample: Any) -> None:
    s, conv = simple(sample()), layer(dropout=0.5)
    torch.manual_seed(1)
    first, second = conv(s.x, s.edge_index), conv(s.x, s.edge_index)
    torch.manual_seed(1)
    assert torch.equal(conv(s.x, s.edge_index), first) and not torch.equal(first, second)
    conv.eval()
    assert torch.equal(conv(s.x, s.edge_index), conv(s.x, s.edge_index))
