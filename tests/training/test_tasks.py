from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import BaseTransform

from graphattn.errors import ArgumentError, CheckpointError, ConfigError
from graphattn.training import (
    GraphClassification,
    GraphRegression,
    GraphTask,
    InductiveNodeClassification,
    NodeClassification,
    ReduceLROnPlateau,
    WarmupCosine,
)


class Rows(nn.Module):
    """Linear on nodes."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Graphs(Rows):
    """Linear on the mean of each graph."""

    def forward(self, x: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
        total = torch.zeros(num_graphs, 2).index_add(0, batch, x)
        return self.linear(total / batch.bincount(minlength=num_graphs).unsqueeze(1))


def graphs(labels: Sequence[Any], nodes: int = 3) -> list[Data]:
    generator = torch.Generator().manual_seed(1)
    edges = torch.tensor([[0, 1], [1, 0]])
    return [Data(x=torch.randn(nodes, 2, generator=generator), edge_index=edges, y=label) for label in labels]


def trainer(**options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", logger=False, **{"max_epochs": 1, **quiet, **options})


def score(task: GraphTask, data: list[Data], batch_size: int) -> dict[str, float]:
    return trainer().test(task, DataLoader(data, batch_size=batch_size), verbose=False)[0]


def outputs(task: GraphTask, data: list[Data]) -> Tensor:
    task.eval()
    with torch.no_grad():
        return task(Batch.from_data_list(data))


def test_regression_averages_over_graphs_whatever_the_batches():
    data = graphs([torch.tensor([float(i)]) for i in range(7)])
    task = GraphRegression(Graphs(1))
    figures = score(task, data, batch_size=4)  # batches of 4 and 3
    error = (outputs(task, data).view(-1) - torch.arange(7.0)).abs().mean().item()
    assert figures["test/mae"] == pytest.approx(error, rel=1e-5)
    assert figures["test/loss"] == pytest.approx(error, rel=1e-5)
    squared = score(GraphRegression(task.model, loss="mse"), data, batch_size=4)["test/loss"]
    assert squared == pytest.approx(F.mse_loss(outputs(task, data).view(-1), torch.arange(7.0)).item(), rel=1e-5)


def test_inductive_loss_weighs_classes_within_the_batch():
    y = torch.tensor([0, 0, 1])
    task = InductiveNodeClassification(Rows(3), num_classes=3)
    scores = torch.randn(3, 3)
    log_p = scores.log_softmax(1)
    # (V - n_c)/V: class 0 weighs 1/3, class 1 weighs 2/3, class 2 is absent and weighs 0.
    expected = -(log_p[0, 0] / 3 + log_p[1, 0] / 3 + 2 * log_p[2, 1] / 3) / (1 / 3 + 1 / 3 + 2 / 3)
    assert task.loss(scores, y).item() == pytest.approx(expected.item(), rel=1e-5)


def test_inductive_loss_of_a_batch_of_one_class_is_a_number():
    task = InductiveNodeClassification(Rows(3), num_classes=3)
    scores, y = torch.randn(4, 3, requires_grad=True), torch.ones(4, dtype=torch.long)
    loss = task.loss(scores, y)
    loss.backward()
    assert loss.item() == pytest.approx(F.cross_entropy(scores, y).item(), rel=1e-5)
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_labelled_targets_are_the_terms_of_a_loss():
    task = GraphClassification(Graphs(3))
    assert task.terms(torch.tensor([2, -100, 0])) == 2
    data = graphs([torch.tensor([label]) for label in (0, -100, -100, 1, 2)])
    figures = score(task, data, batch_size=3)  # one labelled graph, then two
    labelled = torch.tensor([0, 3, 4])
    expected = F.cross_entropy(outputs(task, data)[labelled], torch.arange(3))
    assert figures["test/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_transductive_stages_see_their_own_nodes():
    data = graphs([torch.tensor([0, 1, 1, 0, 1])], nodes=5)[0]
    data.train_mask = torch.tensor([True, True, False, False, False])
    data.val_mask = torch.tensor([False, False, True, False, False])
    data.test_mask = torch.tensor([False, False, False, True, True])
    task = NodeClassification(Rows(2))
    output = outputs(task, [data])
    for stage, nodes in (("train", [0, 1]), ("val", [2]), ("test", [3, 4])):
        prediction, target = task.rows(output, data, stage)
        assert torch.equal(prediction, output[nodes]) and torch.equal(target, data.y[nodes])
    figures = trainer().test(task, DataLoader([data]), verbose=False)[0]
    assert figures["test/accuracy"] == pytest.approx(100 * (output[3:].argmax(1) == data.y[3:]).float().mean().item())
    assert figures["test/loss"] == pytest.approx(F.cross_entropy(output[3:], data.y[3:]).item(), rel=1e-5)
    data.batch_size = 1  # a sampled neighbourhood: only its first node is a seed
    assert task.rows(output, data, "train")[1].tolist() == [0]


def test_transductive_roc_auc_is_that_of_the_second_class():
    task = NodeClassification(Rows(2), metric="roc_auc")
    metric = task.get_submodule("test_metrics")["roc_auc"]
    metric.update(torch.tensor([[9.0, 0], [0, 1], [5, 7], [0, 3]]), torch.tensor([0, 0, 1, 1]))
    assert metric.compute().item() == 100 * 1.0
    metric.reset()
    metric.update(torch.tensor([[0.0, 9], [0, 1], [5, 7], [0, 3]]), torch.tensor([0, 0, 1, 1]))
    assert metric.compute().item() == 100 * 0.5
    with pytest.raises(ConfigError, match=r"needs two classes, got scores \[4, 3\]"):
        metric.update(torch.randn(4, 3), torch.tensor([0, 0, 1, 2]))


def test_multilabel_loss_skips_unlabelled_entries():
    nan = float("nan")
    task = GraphClassification(Graphs(2), labels="multilabel")
    scores = torch.tensor([[1.0, 2], [3, 4]], requires_grad=True)
    loss = task.loss(scores, torch.tensor([[1.0, nan], [0, 1]]))
    labelled = torch.stack([F.softplus(-scores[0, 0]), F.softplus(scores[1, 0]), F.softplus(-scores[1, 1])])
    assert loss.item() == pytest.approx(labelled.mean().item())
    loss.backward()
    assert scores.grad is not None and scores.grad[0, 1] == 0 and scores.grad.isfinite().all()
    assert task.loss(scores, torch.full((2, 2), nan)).item() == 0  # nothing labelled: no NaN


def test_multiclass_and_binary_graph_classification_run():
    figures = score(GraphClassification(Graphs(3)), graphs([torch.tensor([i % 3]) for i in range(5)]), 2)
    assert set(figures) == {"test/loss", "test/accuracy"}
    binary = GraphClassification(Graphs(1), labels="multilabel", metric="roc_auc")
    figures = score(binary, graphs([torch.tensor([[float(i % 2)]]) for i in range(5)]), 2)
    assert 0 <= figures["test/roc_auc"] <= 100 and binary.monitor == "val/roc_auc" and binary.mode == "max"


class CountFlips(BaseTransform):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def forward(self, data: Data) -> Data:
        self.seen.append(int(data.mark[0]))
        return data


def test_train_transform_touches_training_batches_only():
    splits = []
    for mark in (1, 2):
        part = graphs([torch.tensor([0.0])] * 4)
        for data in part:
            data.mark = torch.tensor([mark])
        splits.append(DataLoader(part, batch_size=2))
    flips = CountFlips()
    task = GraphRegression(Graphs(1), train_transform=flips)
    trainer().fit(task, *splits)
    trainer().test(task, splits[1], verbose=False)
    assert flips.seen == [1, 1]  # two training batches; validation, sanity check and test are left alone


def fit(task: GraphTask, epochs: int, **options: Any) -> list[float]:
    """Train on labels that are noise; the learning rate of each epoch."""
    from lightning.pytorch import Callback

    rates: list[float] = []

    class Rates(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    loader = DataLoader(graphs([torch.tensor([float(i)]) for i in range(4)]), batch_size=2)
    trainer(max_epochs=epochs, callbacks=[Rates()], **options).fit(task, loader, loader)
    return rates


def plateau(**options: Any) -> Any:
    """A schedule whose threshold is never met: each epoch after the first is a bad one."""
    return lambda optimizer: ReduceLROnPlateau(optimizer, threshold=10, threshold_mode="abs", **options)


def test_plateau_steps_once_an_epoch_on_its_monitor():
    make = plateau(monitor="val/mae", factor=0.5, patience=1)
    rates = fit(GraphRegression(Graphs(1), lr_scheduler=make), 6)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4])


def test_plateau_steps_in_epochs_that_validate():
    make = plateau(monitor="val/mae", factor=0.5, patience=0)
    rates = fit(GraphRegression(Graphs(1), lr_scheduler=make), 7, check_val_every_n_epoch=2)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4])


def test_plateau_with_an_unknown_monitor_names_the_logged_ones():
    make = plateau(monitor="val/los")
    with pytest.raises(ConfigError, match=r"'val/los', which is not logged; logged: .*val/loss"):
        fit(GraphRegression(Graphs(1), lr_scheduler=make), 1)


def test_training_stops_below_the_smallest_learning_rate():
    make = plateau(monitor="val/loss", factor=0.01, patience=0)
    task = GraphRegression(Graphs(1), lr_scheduler=make, stop_lr=1e-6)
    assert fit(task, 9) == pytest.approx([1e-3, 1e-3, 1e-5])  # and 1e-7 is too small to go on with


def test_warm_up_takes_the_length_of_the_run():
    rates = fit(GraphRegression(Graphs(1), lr_scheduler=lambda o: WarmupCosine(o, warmup_epochs=1)), 5)
    assert rates == pytest.approx([5e-4, 1e-3, *(5e-4 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3))])


def test_mixed_precision_computes_the_loss_in_float32():
    seen: list[torch.dtype] = []

    class Watch(GraphRegression):
        def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
            seen.append(prediction.dtype)
            return super().loss(prediction, target)

    fit(Watch(Graphs(1)), 1, precision="bf16-mixed")
    assert set(seen) == {torch.float32}


def test_wrong_arguments_and_outputs_say_what_is_expected():
    with pytest.raises(ArgumentError, match="metric for .* must be one of"):
        NodeClassification(Rows(2), metric="f1")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="metric for labels='multiclass'"):
        GraphClassification(Graphs(2), metric="roc_auc")
    with pytest.raises(ArgumentError, match="loss must be one of"):
        GraphRegression(Graphs(1), loss="huber")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"class scores \[3, 4\], got \(3, 2\)"):
        InductiveNodeClassification(Rows(2), num_classes=4).loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ConfigError, match="class labels y must be torch.long"):
        NodeClassification(Rows(2)).loss(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ConfigError, match=r"returned \(2, 3\) for targets y of shape \(2,\)"):
        GraphRegression(Graphs(3)).rows(torch.zeros(2, 3), Data(y=torch.zeros(2)), "train")
    with pytest.raises(ConfigError, match=r"train_mask bool \[N\].*shape \(3, 10\)"):
        data = Data(y=torch.zeros(3), train_mask=torch.ones(3, 10, dtype=torch.bool))
        NodeClassification(Rows(2)).rows(torch.zeros(3, 2), data, "train")


def test_weights_of_another_model_do_not_fit():
    with pytest.raises(CheckpointError, match="does not fit Rows"):
        NodeClassification(Rows(2)).load_state_dict(NodeClassification(Rows(3)).state_dict())


def test_metrics_add_nothing_to_the_checkpoint():
    assert set(InductiveNodeClassification(Rows(2), num_classes=2).state_dict()) == {
        "model.linear.weight",
        "model.linear.bias",
    }
