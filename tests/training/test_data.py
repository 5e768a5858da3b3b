from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

import graphattn_datasets
from graphattn.errors import ArgumentError, ConfigError, DataError
from graphattn.training import CompleteGraph, FeatureDropout, GraphDataModule, NodeDataModule


def numbered(count: int) -> list[Data]:
    return [
        Data(x=torch.tensor([i]), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.tensor([i]))
        for i in range(count)
    ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-in for load_dataset; returns what is put into it and records its arguments."""
    box = SimpleNamespace(found=None, arguments=None)

    def load_dataset(name: str, **arguments: Any) -> Any:
        box.arguments = {"name": name, **arguments}
        return box.found

    monkeypatch.setattr(graphattn_datasets, "load_dataset", load_dataset, raising=False)
    return box


def module(fake: Any, **options: Any) -> GraphDataModule:
    fake.found = SimpleNamespace(train=numbered(20), val=numbered(5), test=numbered(5))
    data = GraphDataModule("numbers", batch_size=4, **options)
    data.setup()
    return data


def order(data: GraphDataModule, epoch: int) -> list[int]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([batch.x for batch in loader]).tolist()


def test_order_is_a_function_of_seed_and_epoch(fake: Any):
    first, second = order(module(fake, seed=1), 0), order(module(fake, seed=1), 1)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second and first != list(range(20))
    assert order(module(fake, seed=1), 1) == second  # reached without epoch 0: what a resumed run needs
    assert order(module(fake, seed=2), 0) != first


def test_no_whole_batch_to_train_on_is_one_clear_error(fake: Any):
    data = module(fake, drop_last=True)
    assert len(data.train_dataloader()) == 5
    data.batch_size = 21
    with pytest.raises(ConfigError, match="no training batch: numbers has 20 training graphs .*, batch_size is 21"):
        data.train_dataloader()


def test_default_seed_is_the_run_s(fake: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert order(module(fake), 0) == order(module(fake, seed=7), 0)


def test_loading_leaves_the_global_generator_alone(fake: Any):
    data = module(fake, seed=1)
    state = torch.get_rng_state()
    order(data, 0), list(data.val_dataloader()), list(data.test_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_keeps_the_order_and_may_have_its_own_batch_size(fake: Any):
    data = module(fake, eval_batch_size=3)
    assert [batch.x.tolist() for batch in data.val_dataloader()] == [[0, 1, 2], [3, 4]]
    assert len(data.train_dataloader()) == 5


def test_arguments_reach_the_data_set(fake: Any):
    fake.found = SimpleNamespace(train=numbered(1), val=numbered(1), test=numbered(1))
    one, two = CompleteGraph(), CompleteGraph()
    data = GraphDataModule("numbers", root="here", pre_transform=one, transform=[one, two], options={"seed": 5})
    data.setup()
    data.setup()
    given = fake.arguments
    assert (given["name"], given["root"], given["seed"], given["pre_transform"]) == ("numbers", "here", 5, one)
    assert given["transform"].transforms == [one, two]


def test_a_graph_with_masks_is_one_batch(fake: Any):
    mask = torch.tensor([True])
    graph = numbered(1)[0]
    graph.train_mask = graph.val_mask = graph.test_mask = mask
    fake.found = [graph]
    data = NodeDataModule("one", split=3)
    data.setup()
    assert fake.arguments["split_index"] == 3
    assert list(data.train_dataloader()) == list(data.val_dataloader()) == list(data.predict_dataloader()) == [graph]


def test_wrong_kind_of_data_names_the_right_module(fake: Any):
    fake.found = numbered(3)
    with pytest.raises(ConfigError, match=r"'numbers' has no train\. .*NodeDataModule"):
        GraphDataModule("numbers").setup()
    with pytest.raises(ConfigError, match=r"train_mask; 'numbers' has none\. .*GraphDataModule"):
        NodeDataModule("numbers").setup()
    with pytest.raises(ArgumentError, match="batch_size must be at least 1, got 0"):
        GraphDataModule("numbers", batch_size=0)


@pytest.mark.parametrize(("field", "bad"), [("x", float("nan")), ("pe", float("inf")), ("edge_attr", float("nan"))])
def test_features_that_are_not_finite_are_named(fake: Any, field: str, bad: float):
    edges = {"edge_index": torch.zeros(2, 2, dtype=torch.long), "edge_attr": torch.zeros(2)}
    graph = Data(x=torch.zeros(3, 2), pe=torch.zeros(3, 1), **edges)
    broken = graph.clone()
    broken[field][1] = bad
    fake.found = SimpleNamespace(train=[graph, broken], val=[graph], test=[graph])
    with pytest.raises(DataError, match=f"numbers train: {field} must be finite.*graph 1, row 1"):
        GraphDataModule("numbers").setup()
    for key in ("train_mask", "val_mask", "test_mask"):
        broken[key] = torch.ones(3, dtype=torch.bool)
    fake.found = [broken]
    with pytest.raises(DataError, match=f"numbers: {field} must be finite.*row 1"):
        NodeDataModule("numbers").setup()


def test_unknown_data_set_option_is_one_clear_error():
    with pytest.raises(TypeError, match="num_graph'.*num_graphs"):
        GraphDataModule("pattern", options={"num_graph": [1, 1, 1]}).setup()


def test_generated_pattern_arrives_in_batches():
    data = GraphDataModule("pattern", batch_size=2, options={"num_graphs": [4, 2, 2]})
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch.num_graphs == 2 and batch.x.dtype == batch.y.dtype == torch.long
    assert batch.x.shape == batch.y.shape and set(batch.y.tolist()) <= {0, 1}


def test_complete_graph_has_all_pairs_and_no_loops():
    data = Data(
        x=torch.zeros(4, 1), edge_index=torch.tensor([[0], [1]]), edge_attr=torch.tensor([3]), pe=torch.ones(4, 2)
    )
    full = CompleteGraph()(data)
    pairs = set(map(tuple, full.edge_index.T.tolist()))
    assert pairs == {(i, j) for i in range(4) for j in range(4) if i != j} and full.num_edges == 12
    assert full.edge_attr.shape == (12,) and full.edge_attr.sum() == 0 and full.edge_attr.dtype == torch.long
    assert full.pe is data.pe
    assert data.num_edges == 1  # the graph that was given is left as it was


def test_feature_dropout_scales_what_stays_and_leaves_the_original():
    data = Data(x=torch.ones(100, 10))
    dropped = FeatureDropout(0.75)(data).x
    assert set(dropped.unique().tolist()) == {0.0, 4.0} and 0.15 < (dropped > 0).float().mean() < 0.35
    assert (data.x == 1).all()
    with pytest.raises(ArgumentError, match=r"p must lie in \[0, 1\), got 1"):
        FeatureDropout(1)
