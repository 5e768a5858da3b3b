"""What a run does besides training: exact resumption, history, and a stop when the loss is no number."""

from __future__ import annotations

import csv
import io
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from graphattn._files import write_atomically
from graphattn.errors import TrainingError
from graphattn.training.plots import plot_curves

__all__ = ["EpochSeed", "History", "RunCheckpoint", "StopOnNaN"]


class EpochSeed(Callback):
    """Seed Python, NumPy and torch (all devices) anew at the start of each training epoch.

    The seeds are a function of the run's seed and the epoch. So an epoch draws the same dropout masks and sign flips
    whether the run came there in one go or was killed and resumed.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed for this epoch; each device of a distributed run differently."""
        words = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank]).generate_state(3)
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))
        torch.manual_seed(int(words[2]))


class RunCheckpoint(ModelCheckpoint):
    """Lightning's checkpoints in a folder that may be moved or renamed between two sessions of a run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state with its paths in this folder, so that the best score so far is not forgotten."""
        here = Path(self.dirpath or ".")

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        state = dict(state_dict, dirpath=self.dirpath)
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = moved(state.get(key, ""))
        state["best_k_models"] = {moved(path): score for path, score in state.get("best_k_models", {}).items()}
        super().load_state_dict(state)


class StopOnNaN(Callback):
    """Stop with :class:`~graphattn.errors.TrainingError` when the loss is NaN or infinite.

    The loss is watched on the device and looked at every few steps, at the end of an epoch and after validation,
    always before a checkpoint is written: the last checkpoint is a good one.

    Args:
        every_n_steps: How often to look; each look waits for the device.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._bad_step: Tensor | None = None  # int64 scalar on the device: first bad step, -1 for none

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier fit."""
        self._bad_step = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the first bad step without waiting for it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, dtype=torch.long, device=loss.device)
        is_first_bad = ~torch.isfinite(loss.detach()).all() & (self._bad_step < 0)
        self._bad_step = self._bad_step.where(~is_first_bad, trainer.global_step)
        if (batch_idx + 1) % self.every_n_steps == 0:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the checkpoint of the epoch is written."""
        self._look(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the training steps and at the validation loss: the very last step may have spoilt the weights."""
        self._look(trainer)
        loss = trainer.callback_metrics.get("val/loss")
        if not trainer.sanity_checking and loss is not None and not math.isfinite(float(loss)):
            self._stop(trainer, f"the validation loss is {float(loss)} after step {trainer.global_step}")

    def _look(self, trainer: Trainer) -> None:
        if self._bad_step is not None and (step := int(self._bad_step)) >= 0:
            self._stop(trainer, f"the training loss was not a finite number at step {step}")

    def _stop(self, trainer: Trainer, what: str) -> None:
        paths = [Path(c.dirpath) / "last.ckpt" for c in trainer.checkpoint_callbacks if getattr(c, "dirpath", None)]
        good = next((path for path in paths if path.is_file()), None)
        kept = f"the last good checkpoint is {good}" if good else "no checkpoint was written yet"
        raise TrainingError(
            f"{what} (epoch {trainer.current_epoch}); {kept}. Try a lower learning rate, "
            "--trainer.gradient_clip_val=1.0, or --trainer.precision=32-true, and look for NaN in the features."
        )


class History(Callback):
    """One row an epoch (losses, metrics, learning rate, seconds), kept in ``metrics.csv`` and ``curves.png``.

    The rows travel in the checkpoints, so a resumed run has the whole history, and what came after its checkpoint
    is gone.

    Args:
        folder: Where the two files go.
        every_n_seconds: How often the picture is drawn; it is drawn at the end in any case.
    """

    def __init__(self, folder: str | Path, every_n_seconds: float = 30.0) -> None:
        self.folder = Path(folder)
        self.every_n_seconds = every_n_seconds
        self._drawn = time.perf_counter()
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._rate = 0.0
        self._validated = False

    @property
    def seconds(self) -> float:
        """Training time with validation, summed over all sessions of the run."""
        return sum(row["seconds"] for row in self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and note the learning rate of this epoch."""
        self._validated = False
        self._start = time.perf_counter()
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else math.nan

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that this epoch has figures of its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row of this epoch; Lightning keeps the figures of the last validation, however long ago it was."""
        found = sorted(trainer.callback_metrics.items())
        figures = {name: float(x) for name, x in found if self._validated or not name.startswith("val/")}
        seconds = time.perf_counter() - self._start
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": self._rate, "seconds": seconds}
        self.rows.append({**row, **figures})
        if trainer.is_global_zero:
            self.write_csv()
            if time.perf_counter() - self._drawn > self.every_n_seconds:
                self._draw(pl_module)
                self._drawn = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final picture."""
        if trainer.is_global_zero and self.rows:
            self._draw(pl_module)

    def _draw(self, pl_module: LightningModule) -> None:
        plot_curves(self.rows, self.folder / "curves.png", getattr(pl_module, "metric", "loss"))

    def write_csv(self) -> None:
        """Write ``metrics.csv`` anew."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", lambda file: file.write(text.getvalue().encode()))

    def state_dict(self) -> dict[str, Any]:
        """The rows, as plain numbers."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of a checkpoint."""
        self.rows = [dict(row) for row in state_dict["rows"]]
