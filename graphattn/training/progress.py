"""Progress where there is no terminal: one line an epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

__all__ = ["EpochLines", "progress_bar"]


class EpochLines(ProgressBar):
    """Print one short line after each epoch, for logs and pipes."""

    def __init__(self) -> None:
        super().__init__()
        self._start = 0.0

    def enable(self) -> None:
        """Lightning calls this where the process prints."""
        self.is_enabled = True

    def disable(self) -> None:
        """Lightning calls this on all processes but the first."""
        self.is_enabled = False

    is_enabled = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_epoch_start(trainer, pl_module)
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of this epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self.is_enabled:
            return
        figures: dict[str, Any] = dict(trainer.callback_metrics)
        names = ["train/loss", "val/loss", getattr(pl_module, "monitor", "")]
        shown = [f"{name} {float(figures[name]):.4g}" for name in names if name in figures]
        end = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        seconds = time.perf_counter() - self._start
        self.print(f"epoch {trainer.current_epoch + 1}/{end}  {'  '.join(shown)}  {seconds:.1f} s")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print at once, also into a pipe."""
        print(*args, **{"flush": True, **kwargs})


def progress_bar() -> ProgressBar:
    """A bar on a terminal, one line an epoch elsewhere."""
    return RichProgressBar(leave=False) if sys.stdout.isatty() else EpochLines()
