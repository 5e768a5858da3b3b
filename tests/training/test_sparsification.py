"""Sparsifiner's two stages as a Lightning task."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from graphattn.errors import ArgumentError, CheckpointError
from graphattn.testing import require_or_skip

require_or_skip("train")

from lightning.pytorch import Trainer  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from graphattn.models.image import PrunedVisionTransformer, VisionTransformer  # noqa: E402
from graphattn.training import WarmupCosine  # noqa: E402
from graphattn.training.tasks.sparsification import Sparsification, _cosine  # noqa: E402

SMALL: dict[str, Any] = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 3}
SMALL |= {"embed_dim": 12, "depth": 2, "num_heads": 3}


def network(**options: Any) -> VisionTransformer:
    return VisionTransformer(**SMALL, attention="sparsifiner", **options)


def batches(count: int = 4) -> DataLoader:
    random = torch.Generator().manual_seed(0)
    sets = [
        {"x": torch.randn(6, 1, 8, 8, generator=random), "y": torch.randint(3, (6,), generator=random)}
        for _ in range(count)
    ]
    return DataLoader(sets, batch_size=None)  # type: ignore[arg-type]


def fit(task: Sparsification, epochs: int | None, **options: Any) -> Trainer:
    options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, limit_val_batches=0, **options)
    trainer.fit(task, batches())
    return trainer


def moved(task: Sparsification, before: dict[str, torch.Tensor]) -> set[bool]:
    """Whether what changed is a predictor's."""
    return {".predictor." in k for k, v in task.model.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_stage_trains_its_own_part() -> None:
    torch.manual_seed(0)
    teacher = VisionTransformer(**SMALL)
    adam = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    task = Sparsification(network(), teacher, reconstruction_epochs=2, predictor_lr=1e-2, optimizer=adam)
    theirs = teacher.state_dict()
    assert all(torch.equal(task.model.state_dict()[key], value) for key, value in theirs.items())
    start = {key: value.clone() for key, value in task.model.state_dict().items()}
    first = fit(task, 2)
    assert moved(task, start) == {True}  # predictors alone, weight decay included
    assert "train/loss" in first.callback_metrics

    after = {key: value.clone() for key, value in task.model.state_dict().items()}
    task.reconstruction_epochs = 0
    second = fit(task, 2)
    assert moved(task, after) == {False}
    assert "train/accuracy" in second.callback_metrics
    assert all(torch.equal(task.teacher.state_dict()[key], value) for key, value in theirs.items())
    assert not any("teacher" in key for key in task.state_dict())

    whole = Sparsification(network(), teacher, reconstruction_epochs=1, predictor_lr=1e-2, optimizer=adam)
    start = {key: value.clone() for key, value in whole.model.state_dict().items()}
    fit(whole, 3)
    assert moved(whole, start) == {True, False}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("epochs", [None, 40])
def test_the_second_stage_trains_in_a_run_of_so_many_steps(epochs: int | None) -> None:
    adam = partial(torch.optim.AdamW, lr=1e-2)
    task = Sparsification(network(), reconstruction_epochs=1, predictor_lr=1e-2, optimizer=adam)
    start = {key: value.clone() for key, value in task.model.state_dict().items()}
    trainer = fit(task, epochs, max_steps=10)  # an epoch is 4
    assert moved(task, start) == {True, False}
    lambdas = trainer.lr_scheduler_configs[0].scheduler.lr_lambdas  # type: ignore[union-attr]
    assert [[make(step) > 0 for step in (0, 3, 4, 9)] for make in lambdas] == [
        [False, False, True, True],
        [True, True, False, False],
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_schedules_of_ones_own_are_those_of_all_tasks() -> None:
    adam = partial(torch.optim.AdamW, lr=1e-2)
    for make in (partial(WarmupCosine, warmup_epochs=1), torch.optim.lr_scheduler.ReduceLROnPlateau):
        task = Sparsification(network(), reconstruction_epochs=1, optimizer=adam, lr_scheduler=make)
        assert fit(task, 3).current_epoch == 3


def test_the_loss_of_the_second_stage_by_hand() -> None:
    torch.manual_seed(0)
    teacher = VisionTransformer(**SMALL)
    task = Sparsification(network(), teacher, kl_weight=0.7, feature_weight=0.3, label_smoothing=0.1).train()
    batch = next(iter(batches()))
    loss, logits = task.distillation_loss(batch["x"], batch["y"])
    with torch.no_grad():
        rows, goal = task.model.forward_features(batch["x"]), teacher.forward_features(batch["x"])
        mine, theirs = task.model(batch["x"]).log_softmax(-1), teacher(batch["x"]).softmax(-1)
    divergence = (theirs * (theirs.log() - mine)).sum() / 6
    expected = F.cross_entropy(logits, batch["y"], label_smoothing=0.1) + 0.7 * divergence
    torch.testing.assert_close(loss, expected + 0.3 * (rows - goal)[:, 1:].square().mean())
    alone = Sparsification(network())
    loss, logits = alone.distillation_loss(batch["x"], batch["y"])
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch["y"]))


def test_pruned_networks_are_compared_by_the_patches_they_have() -> None:
    torch.manual_seed(0)
    teacher = VisionTransformer(**SMALL)
    pruned = PrunedVisionTransformer(**SMALL, token_keep=0.5)
    task = Sparsification(pruned, teacher, kl_weight=0.0, feature_weight=1.0)
    assert task.reconstruction_epochs == 0  # no predictor
    batch = next(iter(batches()))
    loss, logits = task.distillation_loss(batch["x"], batch["y"])
    rows, kept = pruned.forward_tokens(batch["x"])
    goal = teacher.forward_features(batch["x"])
    errors = [(rows[n, 1:] - goal[n, kept[n, 1:]]).square().mean() for n in range(6)]
    torch.testing.assert_close(loss - F.cross_entropy(logits, batch["y"]), torch.stack(errors).mean())


def test_teachers_come_from_checkpoints(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained, fresh = VisionTransformer(**SMALL), VisionTransformer(**SMALL)
    torch.save({"state_dict": {f"model.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "task.ckpt")
    task = Sparsification(network(), fresh, str(tmp_path / "task.ckpt"))
    assert torch.equal(task.model.head.weight, trained.head.weight)  # type: ignore[union-attr,arg-type]
    other = Sparsification(network(), fresh, str(tmp_path / "task.ckpt"), start_from_teacher=False)
    assert not torch.equal(other.model.head.weight, trained.head.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(CheckpointError, match="the weights of the teacher do not fit"):
        Sparsification(network(), VisionTransformer(**{**SMALL, "embed_dim": 24}))
    with pytest.raises(CheckpointError, match="missing"):
        Sparsification(VisionTransformer(**SMALL, attention="infsa"), fresh)
    with pytest.raises(ArgumentError, match="teacher_checkpoint needs a teacher"):
        Sparsification(network(), teacher_checkpoint="x")
    with pytest.raises(ArgumentError, match="reconstruction must be 'mean' or 'sum', got 'max'"):
        Sparsification(network(), reconstruction="max")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="reconstruction_epochs must be 0 or more"):
        Sparsification(network(), reconstruction_epochs=-1)


def test_schedules_meet_and_do_not_overlap() -> None:
    first, second = _cosine(0, 40), _cosine(40, 100)
    assert [step for step in range(100) if first(step) > 0] == list(range(40))
    assert [step for step in range(100) if second(step) > 0] == list(range(40, 100))
    assert max(map(first, range(100))) > 0.99 and max(map(second, range(100))) > 0.99
    assert first(0) < 1.0 and second(99) < 0.01
