from __future__ import annotations

import math
import random
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from graphattn.errors import TrainingError
from graphattn.training import EpochSeed, History, StopOnNaN
from graphattn.training.callbacks import RunCheckpoint
from graphattn.training.plots import plot_curves


def draws(seed: int, epoch: int, rank: int = 0) -> tuple[float, float, float]:
    trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    EpochSeed(seed).on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def test_each_epoch_and_rank_draws_its_own_numbers_again_and_again():
    first = draws(1, 0)
    random.random(), np.random.rand(), torch.rand(9)
    assert draws(1, 0) == first
    for other in (draws(2, 0), draws(1, 1), draws(1, 0, rank=1)):
        assert all(a != b for a, b in zip(first, other, strict=True))


def fake_trainer(**values: Any) -> Any:
    defaults = {"global_step": 1, "current_epoch": 0, "callback_metrics": {}, "sanity_checking": False}
    return SimpleNamespace(**{**defaults, "checkpoint_callbacks": [], **values})


def test_nan_is_noticed_at_the_end_of_the_epoch_with_its_first_step():
    watch, module = StopOnNaN(every_n_steps=100), SimpleNamespace()
    watch.on_train_start(fake_trainer(), module)  # type: ignore[arg-type]
    for step, loss in enumerate([1.0, float("inf"), float("nan"), 1.0], start=1):
        trainer = fake_trainer(global_step=step)
        watch.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)}, None, step - 1)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="at step 2"):
        watch.on_train_epoch_end(fake_trainer(), module)  # type: ignore[arg-type]


def test_nan_in_validation_stops_except_in_the_sanity_check():
    watch, metrics = StopOnNaN(), {"val/loss": torch.tensor(float("nan"))}
    watch.on_validation_end(fake_trainer(callback_metrics=metrics, sanity_checking=True), None)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="validation loss is nan after step 1"):
        watch.on_validation_end(fake_trainer(callback_metrics=metrics), None)  # type: ignore[arg-type]


def test_a_moved_folder_remembers_its_best_score(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    before = RunCheckpoint(dirpath=old, filename="best", monitor="val/loss")
    score = torch.tensor(0.25)
    before.best_model_score = before.kth_value = score
    before.best_model_path = before.kth_best_model_path = str(old / "best.ckpt")
    before.best_k_models = {str(old / "best.ckpt"): score}
    after = RunCheckpoint(dirpath=new, filename="best", monitor="val/loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after.load_state_dict(before.state_dict())
    assert after.best_model_score == score and after.best_model_path == str(new / "best.ckpt")
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    assert not after.check_monitor_top_k(trainer, torch.tensor(0.5))  # worse than the best so far
    assert after.check_monitor_top_k(trainer, torch.tensor(0.1))


def test_history_travels_through_its_state(tmp_path: Path):
    history = History(tmp_path)
    history.rows = [
        {"epoch": 0, "seconds": 1.5, "val/loss": 0.5},
        {"epoch": 1, "seconds": 2.0, "val/loss": 0.25, "new": 1.0},
    ]
    copy = History(tmp_path)
    copy.load_state_dict(history.state_dict())
    assert copy.rows == history.rows and copy.seconds == 3.5
    copy.write_csv()
    assert (tmp_path / "metrics.csv").read_text() == "epoch,seconds,val/loss,new\n0,1.5,0.5,\n1,2.0,0.25,1.0\n"


def test_curves_with_gaps_nan_and_one_epoch(tmp_path: Path):
    rows = [{"epoch": 0, "train/loss": 1.0, "val/mae": float("nan")}, {"epoch": 1, "train/loss": 0.5, "val/loss": 2.0}]
    plot_curves(rows, tmp_path / "two.png")
    plot_curves(rows[:1], tmp_path / "one.png")
    plot_curves([{"epoch": 0, "lr": 0.1}], tmp_path / "none.png")  # nothing to draw
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png"}


def test_the_metric_of_a_run_is_drawn_whatever_its_name(tmp_path: Path):
    history = History(tmp_path)
    history.rows = [{"epoch": number, "val/loss": 1.0} for number in range(2)]
    trainer: Any = SimpleNamespace(is_global_zero=True)
    module: Any = SimpleNamespace(metric="bits_per_character")
    sizes = []
    for value in (math.nan, 2.0):
        history.rows = [{**row, "val/bits_per_character": value} for row in history.rows]
        history.on_train_end(trainer, module)
        header = (tmp_path / "curves.png").read_bytes()[16:24]
        sizes.append(int.from_bytes(header[:4], "big"))
    assert sizes[1] == 2 * sizes[0]  # a panel more


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch):
    import sys

    from lightning.pytorch.callbacks import RichProgressBar

    from graphattn.training.progress import EpochLines, progress_bar

    assert isinstance(progress_bar(), EpochLines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bar = progress_bar()
    assert isinstance(bar, RichProgressBar)
    Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[bar])  # Lightning accepts it
