"""OGB sets in their own form through data modules and tasks, scored as OGB's Evaluator scores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch_geometric.nn import global_mean_pool

from graphattn.encoding import AddLaplacianPE, AddRandomWalkPE
from graphattn.errors import ArgumentError, ConfigError
from graphattn.nn import RowEncoder
from graphattn.training import (
    GraphClassification,
    GraphDataModule,
    GraphRegression,
    NodeClassification,
    NodeDataModule,
    run,
)
from graphattn.training.regression_metrics import RegressionError
from graphattn_datasets.ogb import ATOM_DIMS, BOND_DIMS, Evaluator


class Molecules(nn.Module):
    def __init__(self, out: int, pe: int) -> None:
        super().__init__()
        self.atoms, self.bonds = (
            RowEncoder(8, list(ATOM_DIMS), None, "x"),
            RowEncoder(8, list(BOND_DIMS), None, "edge_attr"),
        )
        self.pe, self.head = nn.Linear(pe, 8), nn.Linear(8, out)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, pe: Tensor, batch: Tensor) -> Tensor:
        h = self.atoms(x) + self.pe(pe)
        h = h.index_add(0, edge_index[1], self.bonds(edge_attr) + h[edge_index[0]])
        return self.head(global_mean_pool(h, batch))


def fit(module: Any, task: Any, epochs: int = 2) -> lightning.Trainer:
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


@pytest.mark.parametrize(
    ("name", "task", "unit", "encoding"),
    [
        ("ogbg-molhiv", lambda m: GraphClassification(m, "multilabel", "roc_auc"), 100, AddRandomWalkPE(4)),
        ("ogbg-moltox21", lambda m: GraphClassification(m, "multilabel", "roc_auc"), 100, AddLaplacianPE(4)),
        ("ogbg-molpcba", lambda m: GraphClassification(m, "multilabel", "average_precision"), 1, AddLaplacianPE(4)),
        ("ogbg-molesol", lambda m: GraphRegression(m, "mse", "rmse"), 1, AddRandomWalkPE(4)),
    ],
)
def test_molecules_are_scored_as_the_evaluator_does(ogb_files: Any, name: str, task: Any, unit: float, encoding: Any):
    ogb_files.write(name, graphs=60, missing=name in ("ogbg-moltox21", "ogbg-molpcba"))
    module = GraphDataModule(name, root=str(ogb_files.root), pre_transform=encoding, batch_size=16, seed=0)
    evaluator = Evaluator(name)
    trainer = fit(module, task(Molecules(evaluator.num_tasks, 4)))
    found = trainer.test(trainer.lightning_module, module, verbose=False)[0]
    scores, y = torch.cat(trainer.predict(trainer.lightning_module, module)), module.splits.test._data.y
    y = y[module.splits.test._indices]
    ((official, wanted),) = evaluator.eval({"y_true": y, "y_pred": scores}).items()
    metric = {"rocauc": "roc_auc", "ap": "average_precision"}.get(official, official)
    assert found[f"test/{metric}"] == pytest.approx(unit * wanted, rel=1e-5)


def test_errors_of_several_targets_skip_what_is_unlabelled():
    y, prediction = torch.randn(50, 3), torch.randn(50, 3)
    y[torch.rand(50, 3) < 0.3] = float("nan")
    for name, wanted in (
        (
            "rmse",
            torch.stack([(p - t)[~t.isnan()].square().mean().sqrt() for p, t in zip(prediction.T, y.T, strict=True)]),
        ),
        ("mae", torch.stack([(p - t)[~t.isnan()].abs().mean() for p, t in zip(prediction.T, y.T, strict=True)])),
    ):
        metric = RegressionError(name)
        for _ in range(2):  # a reset forgets
            metric.reset()
            for part in torch.arange(50).split(8):
                metric.update(prediction[part], y[part])
            torch.testing.assert_close(metric.compute(), wanted.mean())
    loss = GraphRegression(Molecules(3, 1), "l1").loss(prediction, y)
    torch.testing.assert_close(loss, (prediction - y).abs()[~y.isnan()].mean())
    with pytest.raises(
        ArgumentError, match=r"metric of GraphRegression must be one of \('mae', 'rmse'\), got 'roc_auc'"
    ):
        GraphRegression(Molecules(1, 1), metric="roc_auc")  # type: ignore[arg-type]


class Rows(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def test_nodes_are_scored_as_the_evaluator_does(ogb_files: Any):
    ogb_files.write("ogbn-arxiv", nodes=60)
    module = NodeDataModule("ogbn-arxiv", root=str(ogb_files.root))
    trainer = fit(module, NodeClassification(Rows(40)))
    found = trainer.test(trainer.lightning_module, module, verbose=False)[0]
    guess = trainer.predict(trainer.lightning_module, module)[0].argmax(1, keepdim=True)
    mask = module.data.test_mask
    wanted = Evaluator("ogbn-arxiv").eval({"y_true": module.data.y[mask].unsqueeze(1), "y_pred": guess[mask]})["acc"]
    assert found["test/accuracy"] == pytest.approx(100 * wanted)
    with pytest.raises(ArgumentError, match="metric for labels='multilabel' must be one of"):
        NodeClassification(Rows(2), metric="accuracy", labels="multilabel")


def test_a_graph_that_the_device_cannot_hold_names_the_sampled_roads(ogb_files: Any, monkeypatch: pytest.MonkeyPatch):
    ogb_files.write("ogbn-arxiv", nodes=60)
    monkeypatch.setattr("graphattn.training.data.nodes.free_memory", lambda device: 1000)
    module = NodeDataModule("ogbn-arxiv", root=str(ogb_files.root))
    module.setup()
    with pytest.raises(ConfigError, match=r"ogbn-arxiv takes .* GB on meta.*NeighborDataModule.*ClusterDataModule"):
        module.transfer_batch_to_device(module.data, torch.device("meta"), 0)


def neighbors(root: str) -> dict[str, Any]:
    network = {"in_channels": 8, "width": 8, "heads": 2, "layers": 2, "dropout": 0.2, "out_channels": 40}
    return {
        "model": {"class_path": "NodeClassification", "init_args": {"model": graph_transformer(network)}},
        "data": {
            "class_path": "NeighborDataModule",
            "init_args": {
                "name": "ogbn-arxiv",
                "root": root,
                "num_neighbors": [3, 3],
                "batch_size": 8,
                "evaluate": "layerwise",
            },
        },
    }


def clusters(root: str) -> dict[str, Any]:
    config = neighbors(root)
    config["data"] = {
        "class_path": "ClusterDataModule",
        "init_args": {"name": "ogbn-arxiv", "root": root, "num_parts": 5, "batch_size": 2},
    }
    return config


def links(root: str) -> dict[str, Any]:
    network = {"in_vocab": 60, "width": 8, "heads": 2, "layers": 1, "dropout": 0.2, "out_channels": 8}
    task = {
        "model": graph_transformer(network),
        "decoder": {"class_path": "graphattn.nn.LinkDecoder", "init_args": {"channels": 8, "dropout": 0.2}},
        "metric": "hits@20",
    }
    data = {
        "name": "ogbl-ddi",
        "root": root,
        "batch_size": 32,
        "transform": {"class_path": "graphattn.training.NodeIds"},
    }
    return {
        "model": {"class_path": "LinkPrediction", "init_args": task},
        "data": {"class_path": "LinkDataModule", "init_args": data},
    }


def graph_transformer(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": "graphattn.models.graph.GraphTransformer", "init_args": arguments}


@pytest.mark.parametrize("make", [neighbors, clusters, links])
def test_a_run_that_is_resumed_ends_as_one_that_was_not(ogb_files: Any, tmp_path: Path, make: Any):
    ogb_files.write("ogbl-ddi" if make is links else "ogbn-arxiv", nodes=60)
    config = make(str(ogb_files.root))
    for part in ("model", "data"):
        config[part]["class_path"] = f"graphattn.training.{config[part]['class_path']}"
    trainer = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 2, **config, "trainer": trainer}))
    whole = run("fit", [f"--config={path}", "--run.name=whole"])
    run("fit", [f"--config={path}", "--run.name=parts", "--trainer.max_epochs=1"])
    parts = run("fit", [f"--config={path}", "--run.name=parts", "--ckpt_path=auto"])
    assert parts.epochs == whole.epochs == 3
    assert (parts.last, parts.best) == (whole.last, whole.best)
    assert whole.last.train["loss"] > 0
