"""The layers inside PyG's own machinery: what works with a layer of PyG works with ours, and gives the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphattn.testing import require_or_skip

require_or_skip("pyg")

from torch_geometric.data import Data, HeteroData  # noqa: E402
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer  # noqa: E402
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks  # noqa: E402
from torch_geometric.loader import NeighborLoader  # noqa: E402
from torch_geometric.nn import GATConv as PyGGATConv  # noqa: E402
from torch_geometric.nn import GATv2Conv as PyGGATv2Conv  # noqa: E402
from torch_geometric.nn import HeteroConv, Sequential, to_hetero  # noqa: E402
from torch_geometric.nn import TransformerConv as PyGTransformerConv  # noqa: E402
from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput  # noqa: E402

from graphattn.conv import GATConv, GATv2Conv, GraphTransformerConv, TransformerConv  # noqa: E402

PYG: dict[type, type] = {TransformerConv: PyGTransformerConv, GATConv: PyGGATConv, GATv2Conv: PyGGATv2Conv}
of_pyg = pytest.mark.parametrize("kind", PYG)
each = pytest.mark.parametrize("kind", [*PYG, GraphTransformerConv])


def no_loops(kind: type) -> dict[str, Any]:
    """Options for edges whose ends are different nodes, and for who counts the edges."""
    return {"add_self_loops": False} if "GAT" in kind.__name__ else {}


def assert_same_model(kind: type, make: Any, *inputs: Any) -> None:
    """``make(layer class)`` gives the same outputs with both classes and the same weights."""
    theirs, ours = make(PYG[kind]), make(kind)
    expected = theirs(*inputs)  # makes lazy parameters, too
    ours(*inputs)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(*inputs), expected, rtol=1e-4, atol=1e-5)


@of_pyg
def test_sequential(kind: type, sample: Any) -> None:
    s = sample(dtype=torch.float32)

    def make(conv: type) -> nn.Module:
        return Sequential(
            "x, edge_index, edge_attr",
            [
                (conv(6, 4, heads=2, edge_dim=3), "x, edge_index, edge_attr -> x"),
                nn.ReLU(inplace=True),
                (conv(8, 5), "x, edge_index -> x"),
            ],
        )

    assert_same_model(kind, make, s.x, s.edge_index, s.edge_attr)
    out = make(GraphTransformerConv)(s.x, s.edge_index, s.edge_attr)
    assert out.shape == (7, 5) and out.isfinite().all()


@pytest.fixture
def hetero(sample: Any) -> HeteroData:
    data = HeteroData()
    user, item = sample(6, targets=9, dtype=torch.float32), sample(9, targets=6, dtype=torch.float32, seed=1)
    data["user"].x, data["item"].x = user.x, torch.cat([item.x, item.x[:, :2]], 1)
    data["user", "buys", "item"].edge_index = user.edge_index
    data["item", "bought_by", "user"].edge_index = item.edge_index
    data["user", "knows", "user"].edge_index = sample(6, seed=2).edge_index
    return data


class TwoLayers(nn.Module):
    def __init__(self, conv: type) -> None:
        super().__init__()
        self.first = conv((-1, -1), 4, heads=2, **no_loops(conv))
        self.second = conv((-1, -1), 3, **no_loops(conv))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


@of_pyg
def test_to_hetero(kind: type, hetero: HeteroData) -> None:
    def make(conv: type) -> nn.Module:
        return to_hetero(TwoLayers(conv), hetero.metadata(), aggr="sum")

    assert_same_model(kind, make, hetero.x_dict, hetero.edge_index_dict)
    out = make(GraphTransformerConv)(hetero.x_dict, hetero.edge_index_dict)
    assert out["user"].shape == (6, 3) and out["item"].shape == (9, 3)


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv])
def test_to_hetero_refuses_self_loops_between_types(kind: type, hetero: HeteroData) -> None:
    model = TwoLayers(kind)
    model.first = kind((-1, -1), 4)
    with pytest.raises(ValueError, match="add_self_loops"):
        to_hetero(model, hetero.metadata())
    with pytest.raises(ValueError, match="add_self_loops"):
        HeteroConv({("user", "buys", "item"): kind((-1, -1), 4)})


@of_pyg
def test_hetero_conv(kind: type, hetero: HeteroData) -> None:
    def make(conv: type) -> nn.Module:
        relations = {edges: conv((-1, -1), 4, heads=2, **no_loops(conv)) for edges in hetero.edge_types}
        return HeteroConv(relations, aggr="mean")

    assert_same_model(kind, make, hetero.x_dict, hetero.edge_index_dict)
    out = make(GraphTransformerConv)(hetero.x_dict, hetero.edge_index_dict)
    assert out["user"].shape == (6, 8) and out["item"].shape == (9, 8)


class AllNeighbors(BaseSampler):
    """Every node within ``hops`` of the seeds, seeds first; PyG's own sampler needs compiled packages."""

    def __init__(self, edge_index: Tensor, num_nodes: int, hops: int) -> None:
        self.edge_index, self.num_nodes, self.hops = edge_index, num_nodes, hops

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: Any) -> SamplerOutput:
        source, target = self.edge_index
        node = index.node
        for _ in range(self.hops):
            reached = source[torch.isin(target, node)].unique()
            node = torch.cat([node, reached[~torch.isin(reached, node)]])
        local = torch.full((self.num_nodes,), -1)
        local[node] = torch.arange(len(node))
        edge = (torch.isin(source, node) & torch.isin(target, node)).nonzero()[:, 0]
        return SamplerOutput(
            node, local[source[edge]], local[target[edge]], edge, metadata=(index.input_id, index.time)
        )

    def sample_from_edges(self, *args: Any, **kwargs: Any) -> SamplerOutput:
        raise NotImplementedError


@each
def test_neighbor_loader(kind: type, sample: Any) -> None:
    s = sample(60, 90, dtype=torch.float32)
    data = Data(x=s.x, edge_index=s.edge_index, edge_attr=s.edge_attr)
    first, second = kind(6, 4, heads=2, edge_dim=3), kind(8, 3, edge_dim=3)

    def model(data: Data) -> Tensor:
        x = first(data.x, data.edge_index, data.edge_attr).relu()
        return second(x, data.edge_index, data.edge_attr)

    loader = NeighborLoader(
        data, [-1, -1], batch_size=8, neighbor_sampler=AllNeighbors(s.edge_index, 60, 2), shuffle=False
    )
    batches = list(loader)
    assert len(batches) == 8 and all(batch.num_nodes < 60 for batch in batches)
    seeds = torch.cat([model(batch)[: batch.batch_size] for batch in batches])
    torch.testing.assert_close(seeds, model(data), rtol=1e-4, atol=1e-5)


# --- explain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TransformerConv, {}),
        (TransformerConv, {"edge_dim": 3, "beta": True}),
        *((kind, options) for kind in (GATConv, GATv2Conv) for options in ({}, {"edge_dim": 3}, no_loops(kind))),
    ],
)
def test_edge_masks_act_as_in_pyg(sample: Any, kind: type, options: dict[str, Any]) -> None:
    s = sample()
    edge_attr = s.edge_attr if "edge_dim" in options else None
    theirs = PYG[kind](6, 4, heads=2, **options).double()
    ours = kind(6, 4, heads=2, **options).double()
    ours.load_state_dict(theirs.state_dict())
    plain = ours(s.x, s.edge_index, edge_attr)
    mask = torch.randn(s.edge_index.shape[1], dtype=torch.float64, requires_grad=True)
    grads = []
    for conv in (theirs, ours):
        set_masks(conv, mask, s.edge_index)
        out = conv(s.x, s.edge_index, edge_attr)
        grads.append((out, *torch.autograd.grad(out.sin().sum(), mask)))
        clear_masks(conv)
    torch.testing.assert_close(grads[1], grads[0])
    assert not torch.allclose(grads[1][0], plain)
    torch.testing.assert_close(ours(s.x, s.edge_index, edge_attr), plain)


@each
@pytest.mark.parametrize("edge_dim", [None, 3])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_message_hooks_see_every_edge_and_change_nothing(
    kind: type, edge_dim: int | None, flow: str, sample: Any
) -> None:
    s = sample(5, targets=8)
    edge_index = s.edge_index if flow == "source_to_target" else s.edge_index.flip(0)
    conv = kind((6, 6), 4, heads=2, edge_dim=edge_dim, flow=flow, **no_loops(kind)).double()
    inputs = ((s.x, s.x_target), edge_index, s.edge_attr if edge_dim else None)
    plain, (_, alpha) = conv(*inputs, return_attention_weights=True)
    seen: list[Tensor] = []
    handle = conv.register_message_forward_hook(lambda module, inputs, out: seen.append((inputs[0]["alpha"], out)))
    torch.testing.assert_close(conv(*inputs), plain)
    handle.remove()
    conv(*inputs)
    ((hooked_alpha, messages),) = seen
    torch.testing.assert_close(hooked_alpha, alpha)
    assert messages.shape == (s.edge_index.shape[1], 2, 4)


def explainer(model: nn.Module, algorithm: Any, edge_mask_type: str | None) -> Explainer:
    return Explainer(
        model,
        algorithm,
        explanation_type="model",
        edge_mask_type=edge_mask_type,
        model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
    )


@each
def test_explainers_run(kind: type, sample: Any) -> None:
    s = sample(dtype=torch.float32)
    conv = kind(6, 4, heads=2, concat=False, **no_loops(kind))
    _, (_, alpha) = conv(s.x, s.edge_index, return_attention_weights=True)
    by_attention = explainer(conv, AttentionExplainer(), "object")(s.x, s.edge_index)
    torch.testing.assert_close(by_attention.edge_mask, alpha.detach().amax(1))

    learned = explainer(conv, GNNExplainer(epochs=3), "object")(s.x, s.edge_index, index=2)
    reads = s.edge_index[1] == 2
    assert (learned.edge_mask[reads] > 0).all() and (learned.edge_mask[~reads] == 0).all()
