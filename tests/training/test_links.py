"""Link prediction: batches, drawn negatives, OGB's metrics, and training on a set in OGB's form."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from graphattn.errors import ArgumentError, ConfigError
from graphattn.nn import LinkDecoder
from graphattn.training import LinkDataModule, LinkPrediction, NodeDataModule, NodeIds
from graphattn.training.link_metrics import HitsAt, MeanReciprocalRank
from graphattn.training.negatives import edge_keys, sample_negatives
from graphattn_datasets.ogb import Evaluator

NODES = 40


class Net(nn.Module):
    def __init__(self, nodes: int = NODES) -> None:
        super().__init__()
        self.embed, self.conv, self.calls = nn.Embedding(nodes, 8), SAGEConv(8, 8), 0

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(self.embed(x), edge_index)


def module(ogb_files: Any, name: str = "ogbl-ddi", **options: Any) -> LinkDataModule:
    if not (ogb_files.root / name.replace("-", "_")).exists():
        ogb_files.write(name, nodes=NODES)
    data = LinkDataModule(name, root=str(ogb_files.root), transform=NodeIds(), **options)
    data.setup()
    return data


def moved(data: LinkDataModule, batch: Any) -> Any:
    return data.transfer_batch_to_device(batch, torch.device("cpu"), 0)


def trainer(epochs: int = 1) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


# --- negatives ----------------------------------------------------------------------------------------------------


def test_negatives_are_no_edges_and_cover_the_others():
    edge_index = torch.randint(0, 12, (2, 30))
    keys = edge_keys(edge_index, 12)
    pairs = sample_negatives(None, 20_000, 12, keys)
    assert pairs.shape == (2, 20_000) and int(pairs.min()) == 0 and int(pairs.max()) == 11
    drawn = set(map(tuple, pairs.T.tolist()))
    edges = set(map(tuple, edge_index.T.tolist())) | {(n, n) for n in range(12)}
    # 40 of 144 pairs are not allowed; five draws in a row hit them with probability 0.0017.
    bad = sum(tuple(pair) in edges for pair in pairs.T.tolist())
    assert bad < 0.01 * 20_000 and {(a, b) for a in range(12) for b in range(12)} - edges <= drawn


def test_negatives_of_given_sources_keep_them():
    sources = torch.arange(12).repeat(5)
    pairs = sample_negatives(sources, 60, 12, edge_keys(torch.tensor([[0], [1]]), 12))
    assert torch.equal(pairs[0], sources) and not (pairs[0] == pairs[1]).any()


# --- metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", [10, 200])
def test_hits_are_the_evaluator_s(negatives: int):
    positive, negative = torch.randn(100).round(decimals=1), torch.randn(negatives).round(decimals=1)
    wanted = Evaluator("ogbl-ddi").eval({"y_pred_pos": positive, "y_pred_neg": negative})["hits@20"]
    scores, labels = torch.cat((positive, negative)), torch.cat((torch.ones(100), torch.zeros(negatives)))
    metric = HitsAt(20)
    for part in torch.randperm(len(scores)).split(33):
        metric.update(scores[part], labels[part])
    assert float(metric.compute()) == pytest.approx(100 * wanted, abs=1e-4)


def test_reciprocal_ranks_are_the_evaluator_s():
    scores = torch.randn(50, 31).round(decimals=1)
    wanted = (
        Evaluator("ogbl-citation2").eval({"y_pred_pos": scores[:, 0], "y_pred_neg": scores[:, 1:]})["mrr_list"].mean()
    )
    metric = MeanReciprocalRank()
    for part in scores.split(7):
        metric.update(part, torch.zeros(0))
    assert float(metric.compute()) == pytest.approx(100 * float(wanted), rel=1e-5)


# --- batches ------------------------------------------------------------------------------------------------------


def test_training_batches_are_all_edges_in_an_order_of_seed_and_epoch(ogb_files: Any):
    def epoch(number: int) -> list[Any]:
        loader = module(ogb_files, batch_size=16, seed=1).train_dataloader()
        loader.sampler.set_epoch(number)
        batches = list(loader)
        assert len(batches) == len(loader)
        return torch.cat([batch.edge_label_index for batch in batches], dim=1).T.tolist()

    wanted = module(ogb_files).edges["train"]["edge"].tolist()
    assert sorted(epoch(0)) == sorted(wanted) and epoch(0) != epoch(1) and epoch(1) == epoch(1)


def test_evaluation_batches_are_the_edges_and_their_negatives(ogb_files: Any):
    data = module(ogb_files, eval_batch_size=7)
    batches = list(data.val_dataloader())
    pairs, labels = torch.cat([b.edge_label_index for b in batches], 1), torch.cat([b.edge_label for b in batches])
    assert torch.equal(pairs[:, labels == 1].T, data.edges["valid"]["edge"])
    assert torch.equal(pairs[:, labels == 0].T, data.edges["valid"]["edge_neg"])


def test_ranked_batches_hold_each_edge_with_its_own_negatives(ogb_files: Any):
    data = module(ogb_files, "ogbl-citation2", eval_batch_size=25)
    edges, at = data.edges["test"], 0
    for batch in data.test_dataloader():
        assert batch.num_candidates == 11 and batch.edge_label_index.shape[1] <= 25
        source, target = batch.edge_label_index.view(2, -1, 11)
        rows = slice(at, at + len(source))
        assert torch.equal(source[:, 3], edges["source_node"][rows]) and torch.equal(
            target[:, 0], edges["target_node"][rows]
        )
        assert torch.equal(target[:, 1:], edges["target_node_neg"][rows])
        at += len(source)
    assert at == 20


def test_targets_can_be_left_out_of_the_input(ogb_files: Any):
    data = module(ogb_files, batch_size=10, drop_targets=True)
    batch = next(iter(data.train_dataloader()))
    out = moved(data, batch)
    left = set(map(tuple, out.edge_index.T.tolist()))
    gone = {pair for a, b in batch.edge_label_index.T.tolist() for pair in ((a, b), (b, a))}
    assert left.isdisjoint(gone) and left | gone == set(map(tuple, data.data.edge_index.T.tolist()))
    assert moved(data, next(iter(data.val_dataloader()))).edge_index.shape == data.data.edge_index.shape
    collab = module(ogb_files, "ogbl-collab", batch_size=10, drop_targets=True)
    out = moved(collab, next(iter(collab.train_dataloader())))
    assert len(out.edge_weight) == len(out.edge_year) == out.edge_index.shape[1] == collab.data.num_edges - 20


def test_validation_edges_may_be_read_when_testing(ogb_files: Any):
    data = module(ogb_files, "ogbl-collab", val_edges_as_input=True)
    train, valid = (moved(data, next(iter(loader))) for loader in (data.train_dataloader(), data.val_dataloader()))
    test = moved(data, next(iter(data.test_dataloader())))
    assert train.num_edges == valid.num_edges == data.data.num_edges == test.num_edges - 40
    fresh = test.edge_index[:, data.data.num_edges :]
    assert torch.equal(fresh[:, ::2].T, data.edges["valid"]["edge"]) and torch.equal(
        fresh[:, ::2], fresh[:, 1::2].flip(0)
    )
    assert torch.equal(test.edge_weight[-40::2, 0], data.edges["valid"]["weight"])


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [None, LinkDecoder(8)])
def test_training_scores_as_the_evaluator_does(ogb_files: Any, decoder: Any):
    data = module(ogb_files, batch_size=32, eval_batch_size=13, seed=0)
    task = LinkPrediction(Net(), decoder=decoder, metric="hits@20", optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    run = trainer(3)
    run.fit(task, data)
    found = {key: float(value) for key, value in run.callback_metrics.items()}
    calls = task.model.calls
    assert calls == 3 * (len(data.train_dataloader()) + 1)  # once a batch, once for all of an evaluation
    task.eval()
    with torch.no_grad():
        rows = task.model(torch.arange(NODES), data.data.edge_index)
        scores = {key: task.score(rows, data.edges["valid"][key].T) for key in ("edge", "edge_neg")}
    wanted = Evaluator("ogbl-ddi").eval({"y_pred_pos": scores["edge"], "y_pred_neg": scores["edge_neg"]})
    assert found["val/hits@20"] == pytest.approx(100 * wanted["hits@20"], abs=1e-4)
    assert {"train/loss", "val/loss"} <= found.keys() and "train/hits@20" not in found
    assert run.test(task, data, verbose=False)[0].keys() == {"test/loss", "test/hits@20"}
    assert len(torch.cat(run.predict(task, data))) == 20 + 30


def test_ranks_and_given_sources(ogb_files: Any):
    data = module(ogb_files, "ogbl-citation2", batch_size=32)
    run = trainer()
    run.fit(LinkPrediction(Net(), metric="mrr", negatives="targets", num_negatives=2), data)
    assert 100 / 11 - 1e-3 <= float(run.callback_metrics["val/mrr"]) <= 100


def test_it_learns(ogb_files: Any):
    data = module(ogb_files, batch_size=64, seed=0)
    task = LinkPrediction(Net(), decoder=LinkDecoder(8), optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
    losses = []
    for epochs in (1, 30):
        run = trainer(epochs)
        run.fit(task, data)
        losses.append(float(run.callback_metrics["train/loss"]))
    assert losses[1] < 0.8 * losses[0]


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_metric_that_does_not_fit_is_one_clear_error(ogb_files: Any):
    with pytest.raises(ArgumentError, match=r"metric of LinkPrediction must be 'hits@K', 'mrr' or 'roc_auc', got 'acc"):
        LinkPrediction(Net(), metric="accuracy")
    with pytest.raises(ArgumentError, match="must be 'hits@K'.* got 'hits@0'"):
        LinkPrediction(Net(), metric="hits@0")
    with pytest.raises(
        ConfigError, match="'mrr' does not fit these data, which have one pool of negatives: use 'hits@K'"
    ):
        trainer().validate(LinkPrediction(Net(), metric="mrr"), module(ogb_files), verbose=False)
    with pytest.raises(ConfigError, match="'hits@20' does not fit these data, which have negatives of its own"):
        trainer().validate(LinkPrediction(Net(), metric="hits@20"), module(ogb_files, "ogbl-citation2"), verbose=False)


def test_the_wrong_kind_of_data_names_the_right_module(ogb_files: Any):
    ogb_files.write("ogbn-arxiv", nodes=30)
    with pytest.raises(ConfigError, match="'ogbn-arxiv' has none.*NodeDataModule"):
        LinkDataModule("ogbn-arxiv", root=str(ogb_files.root)).setup()
    ogb_files.write("ogbl-ddi", nodes=NODES)
    with pytest.raises(ConfigError, match="'ogbl-ddi' has none.*LinkDataModule"):
        NodeDataModule("ogbl-ddi", root=str(ogb_files.root)).setup()
    with pytest.raises(ArgumentError, match="eval_batch_size must be at least 1, got 0"):
        LinkDataModule("ogbl-ddi", eval_batch_size=0)
    with pytest.raises(ArgumentError, match="num_negatives must be at least 1, got 0"):
        LinkPrediction(Net(), num_negatives=0)
