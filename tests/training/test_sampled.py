"""Training on pieces of a graph: what is drawn, in which order, and evaluation on all of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.utils import k_hop_subgraph

import graphattn_datasets
from graphattn.errors import ArgumentError, ConfigError, MissingPackageError
from graphattn.models.graph import GraphTransformer
from graphattn.training import (
    ClusterDataModule,
    NeighborDataModule,
    NodeClassification,
    layerwise_inference,
)
from graphattn.training.data.neighbors import InEdges, NeighborhoodSampler

NODES, EDGES = 120, 900


def graph(seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(NODES, (2, EDGES), generator=generator)
    part = torch.randint(3, (NODES,), generator=generator)
    return Data(
        x=torch.randn(NODES, 5, generator=generator),
        edge_index=edge_index,
        edge_attr=torch.arange(EDGES),
        y=torch.randint(3, (NODES,), generator=generator),
        train_mask=part == 0,
        val_mask=part == 1,
        test_mask=part == 2,
    )


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Data:
    found = graph()
    monkeypatch.setattr(graphattn_datasets, "load_dataset", lambda name, **arguments: [found])
    return found


class Net(nn.Module):
    """Two hops."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(5, 8), SAGEConv(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def ready(module: Any) -> Any:
    module.setup()
    return module


# --- the sampler --------------------------------------------------------------------------------------------------


def test_in_edges_are_grouped_by_target():
    edges = InEdges(torch.tensor([[3, 0, 1, 0], [1, 2, 1, 1]]), 4)
    assert edges.ptr.tolist() == [0, 0, 3, 4, 4]
    assert edges.source.tolist() == [3, 1, 0, 0] and edges.edge.tolist() == [0, 2, 3, 1]


def test_all_neighbours_are_the_subgraph_within_as_many_hops():
    data = graph()
    sampler = NeighborhoodSampler(InEdges(data.edge_index, NODES), [-1, -1])
    seeds = np.array([7, 50, 3])
    node, row, col, edge, node_counts, edge_counts = sampler.neighborhood(seeds)
    wanted, _, _, mask = k_hop_subgraph([7, 50, 3], 2, data.edge_index, num_nodes=NODES)
    assert node[:3].tolist() == [7, 50, 3] and sorted(node) == wanted.tolist()
    assert np.array_equal(np.stack((node[row], node[col])), data.edge_index[:, edge].numpy())
    inner = set(node[: node_counts[0] + node_counts[1]].tolist())  # nodes of the last hop are not expanded
    expected = [e for e in range(EDGES) if int(data.edge_index[1, e]) in inner]
    assert sorted(edge) == expected and set(edge) <= set(mask.nonzero().view(-1).tolist())
    assert sum(node_counts) == len(node) and sum(edge_counts) == len(edge)


def test_a_node_reads_as_many_neighbours_as_asked_and_none_twice():
    data = graph()
    edges = InEdges(data.edge_index, NODES)
    node, row, col, edge, *_ = NeighborhoodSampler(edges, [3]).neighborhood(np.arange(NODES))
    degree = np.diff(edges.ptr)
    assert np.array_equal(np.bincount(col, minlength=NODES), np.minimum(degree, 3))
    assert len(set(edge)) == len(edge) and np.array_equal(node[row], data.edge_index[0, edge].numpy())


def test_each_neighbour_is_as_likely():
    edges = InEdges(torch.stack((torch.arange(1, 11), torch.zeros(10, dtype=torch.long))), 11)
    order = SimpleNamespace(epoch=0)
    sampler = NeighborhoodSampler(edges, [4], order=order)  # type: ignore[arg-type]
    counts = np.zeros(11)
    for epoch in range(3000):
        order.epoch = epoch
        counts[sampler.neighborhood(np.array([0]))[0][1:]] += 1
    # Binomial(3000, 0.4): standard deviation 27.
    assert counts[0] == 0 and np.abs(counts[1:] - 1200).max() < 130


def test_the_choice_is_a_function_of_seed_epoch_and_batch():
    edges = InEdges(graph().edge_index, NODES)

    def drawn(seed: int = 0, epoch: int = 0, seeds: Any = (1, 2, 3)) -> list[int]:
        order: Any = SimpleNamespace(epoch=epoch)
        return NeighborhoodSampler(edges, [2, 2], seed, order).neighborhood(np.array(seeds))[3].tolist()

    assert drawn() == drawn()
    assert drawn() != drawn(seed=1) and drawn() != drawn(epoch=1)
    sampler = NeighborhoodSampler(edges, [2, 2])
    first = sampler.neighborhood(np.array([4, 5]))
    sampler.neighborhood(np.arange(50))
    assert all(np.array_equal(a, b) for a, b in zip(first[:4], sampler.neighborhood(np.array([4, 5]))[:4], strict=True))


def test_a_seed_given_twice_counts_once():
    sampler = NeighborhoodSampler(InEdges(graph().edge_index, NODES), [2])
    out = sampler.sample_from_nodes(NodeSamplerInput(input_id=torch.tensor([8, 9, 8]), node=torch.tensor([5, 2, 5])))
    assert out.node[:2].tolist() == [5, 2] and out.metadata[0].tolist() == [8, 9]


# --- batches ------------------------------------------------------------------------------------------------------


def test_batches_have_pyg_s_convention(data: Data):
    module = ready(NeighborDataModule("one", [3, 2], batch_size=8))
    seen = []
    for batch in module.train_dataloader():
        seeds = batch.n_id[: batch.batch_size]
        assert data.train_mask[seeds].all() and torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.y, data.y[batch.n_id]) and torch.equal(batch.edge_attr, batch.e_id)
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert torch.equal(seeds, data.train_mask.nonzero().view(-1)[batch.input_id])
        seen += seeds.tolist()
    assert sorted(seen) == data.train_mask.nonzero().view(-1).tolist()


def test_order_and_neighbours_survive_resumption_and_workers(data: Data):
    def epoch(number: int, **options: Any) -> list[list[int]]:
        loader = ready(NeighborDataModule("one", [2, 2], batch_size=8, seed=1, **options)).train_dataloader()
        loader.sampler.set_epoch(number)
        return [batch.n_id.tolist() for batch in loader]

    first, second = epoch(0), epoch(1)
    assert first != second and epoch(1) == second
    assert epoch(1, num_workers=1) == second


def test_evaluation_by_neighbourhoods_is_exact(data: Data):
    module = ready(NeighborDataModule("one", [2, 2], evaluate="neighbors", eval_batch_size=7))
    model = Net().eval()
    whole = model(data.x, data.edge_index)
    seen = []
    for batch in module.val_dataloader():
        out = model(batch.x, batch.edge_index)[: batch.batch_size]
        torch.testing.assert_close(out, whole[batch.n_id[: batch.batch_size]])
        seen += batch.n_id[: batch.batch_size].tolist()
    assert sorted(seen) == data.val_mask.nonzero().view(-1).tolist()


def test_clusters_cover_the_graph_with_the_edges_inside(data: Data):
    module = ready(ClusterDataModule("one", num_parts=6, batch_size=2))
    data.n_id = torch.arange(NODES)
    seen = []
    for batch in module.train_dataloader():
        inside = torch.isin(data.edge_index, batch.n_id).all(0)
        assert batch.edge_index.shape[1] == int(inside.sum())
        pairs = {tuple(pair) for pair in batch.n_id[batch.edge_index].T.tolist()}
        assert pairs == {tuple(pair) for pair in data.edge_index[:, inside].T.tolist()}
        assert torch.equal(batch.x, data.x[batch.n_id]) and torch.equal(batch.train_mask, data.train_mask[batch.n_id])
        seen += batch.n_id.tolist()
    assert sorted(seen) == list(range(NODES))


# --- training -----------------------------------------------------------------------------------------------------


def fit(module: Any, task: Any, epochs: int = 1) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, module)
    return trainer


@pytest.mark.parametrize("evaluate", ["full", "layerwise", "neighbors"])
def test_all_ways_to_evaluate_give_the_same_figure(data: Data, evaluate: str):
    torch.manual_seed(0)
    model = GraphTransformer(3, in_channels=5, width=8, heads=2, layers=2, norm="layer")
    module = NeighborDataModule("one", [4, 4], batch_size=16, evaluate=evaluate, eval_batch_size=11, seed=0)
    trainer = fit(module, NodeClassification(model), epochs=2)
    found = {key: float(value) for key, value in trainer.callback_metrics.items()}
    model.eval()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    assert found["val/accuracy"] == pytest.approx(100 * float(right[data.val_mask].float().mean()), abs=1e-3)
    tested = trainer.test(trainer.lightning_module, module, verbose=False)[0]
    assert tested["test/accuracy"] == pytest.approx(100 * float(right[data.test_mask].float().mean()), abs=1e-3)


def test_clusters_train(data: Data):
    found = fit(ClusterDataModule("one", 6, 2, evaluate="full"), NodeClassification(Net()), epochs=2).callback_metrics
    assert found["train/loss"].isfinite() and 0 <= float(found["val/accuracy"]) <= 100


def test_clusters_without_a_training_node_train(data: Data):
    data.train_mask[3:] = False  # most batches have none
    found = fit(ClusterDataModule("one", 6, 1, seed=0), NodeClassification(Net()), epochs=2).callback_metrics
    assert found["train/loss"].isfinite() and found["val/loss"].isfinite()


@pytest.mark.parametrize("options", [{}, {"edge_vocab": EDGES}, {"constant_edges": True}, {"pe_dim": 2}])
@pytest.mark.parametrize("batch_size", [1, 37, 1000])
def test_layer_by_layer_equals_all_at_once(options: dict[str, Any], batch_size: int):
    data = graph()
    data.pe = torch.randn(NODES, 2)
    model = GraphTransformer(3, in_channels=5, width=8, heads=2, layers=3, **options).eval()
    given = {"edge_attr": data.edge_attr if "edge_vocab" in options else None, "pe": data.pe}
    with torch.no_grad():
        wanted = model(data.x, data.edge_index, **given)
    torch.testing.assert_close(layerwise_inference(model, data, batch_size), wanted, rtol=1e-5, atol=1e-6)


def test_proteins_like_labels_train_on_nodes(data: Data):
    data.y = torch.where(torch.rand(NODES, 3) < 0.2, float("nan"), torch.randint(2, (NODES, 3)).float())
    task = NodeClassification(Net(), labels="multilabel")
    found = fit(NeighborDataModule("one", [3, 3], batch_size=16, evaluate="full"), task).callback_metrics
    scores = task.model.eval()(data.x, data.edge_index)
    wanted = graphattn_datasets.roc_auc(scores[data.val_mask].detach(), data.y[data.val_mask])
    assert float(found["val/roc_auc"]) == pytest.approx(100 * float(wanted), abs=1e-3)


# --- errors -------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named(data: Data):
    with pytest.raises(ArgumentError, match="evaluate must be one of"):
        NeighborDataModule("one", [2], evaluate="sampled")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"num_neighbors must be positive counts or -1, one a hop, got \[0\]"):
        ready(NeighborDataModule("one", [0])).train_dataloader()
    with pytest.raises(ArgumentError, match=r"batch_size must be in 1\.\.num_parts=2, got 3"):
        ClusterDataModule("one", num_parts=2, batch_size=3)
    with pytest.raises(ConfigError, match="num_parts must be at most the 120 nodes"):
        ready(ClusterDataModule("one", num_parts=200)).train_dataloader()


def test_layer_by_layer_needs_a_model_with_parts():
    with pytest.raises(ConfigError, match="Net has no encode_nodes, blocks, head"):
        layerwise_inference(Net(), graph(), 10)
    pooled = GraphTransformer(3, in_channels=5, width=8, heads=2, layers=1, readout="mean")
    with pytest.raises(ConfigError, match="GraphTransformer pools its nodes"):
        layerwise_inference(pooled, graph(), 10)
    with pytest.raises(ArgumentError, match="batch_size must be at least 1, got 0"):
        layerwise_inference(GraphTransformer(3, in_channels=5, width=8, heads=2, layers=1), graph(), 0)


def test_pyg_s_sampler_runs_or_says_what_it_needs(data: Data):
    import torch_geometric.typing as have

    module = ready(NeighborDataModule("one", [2, 2], batch_size=8, sampler="pyg"))
    if have.WITH_PYG_LIB or have.WITH_TORCH_SPARSE:
        batch = next(iter(module.train_dataloader()))
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
    else:
        with pytest.raises(MissingPackageError, match="sampler='pyg' needs pyg-lib or torch-sparse"):
            module.train_dataloader()
