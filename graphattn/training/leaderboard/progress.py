"""How the seeds are getting on: a live table on a terminal, one line for each start and end elsewhere."""

from __future__ import annotations

import contextlib
import csv
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphattn.training.leaderboard.plan import Plan
from graphattn.training.leaderboard.seeds import Display, SeedRun

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["Standing", "display", "read_standing"]


@dataclass
class Standing:
    """How far a run has come.

    Args:
        epochs: Epochs done.
        best: Best validation figure so far; NaN before the first.
        best_epoch: Its epoch, counted from 1.
    """

    epochs: int = 0
    best: float = math.nan
    best_epoch: int = 0

    def text(self, max_epochs: int | None, monitor: str) -> str:
        """``epoch 12/100, best val/mae 0.231 (epoch 9)``."""
        figure = f", best {monitor} {self.best:.4g} (epoch {self.best_epoch})" if self.best_epoch else ""
        return f"epoch {self.epochs}/{max_epochs or '?'}{figure}"


def read_standing(folder: Path, monitor: str, mode: str) -> Standing:
    """Read a run's ``metrics.csv``; it need not be there yet."""
    standing = Standing()
    try:
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return standing
    for row in rows:
        standing.epochs = int(row["epoch"]) + 1
        value = float(row.get(monitor) or math.nan)
        better = value < standing.best if mode == "min" else value > standing.best
        if better or (math.isnan(standing.best) and not math.isnan(value)):
            standing.best, standing.best_epoch = value, standing.epochs
    return standing


@contextlib.contextmanager
def display(plan: Plan) -> Iterator[Display]:
    """The display that suits the output."""
    if not sys.stdout.isatty():
        yield _Lines(plan)
        return
    from rich.live import Live

    with Live(refresh_per_second=4) as live:
        yield _Table(plan, live)


class _Lines:
    """For logs and pipes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def show(self, runs: list[SeedRun]) -> None:
        """Nothing: a log needs no heartbeat."""

    def tell(self, run: SeedRun) -> None:
        """One line."""
        print(_line(self.plan, run), flush=True)


class _Table:
    """For terminals."""

    def __init__(self, plan: Plan, live: Live) -> None:
        self.plan, self.live = plan, live
        self._drawn = 0.0

    def show(self, runs: list[SeedRun]) -> None:
        """Draw anew, at most every second."""
        if time.monotonic() - self._drawn < 1:
            return
        from rich.text import Text

        self._drawn = time.monotonic()
        self.live.update(Text("\n".join(_line(self.plan, run) for run in runs)))

    def tell(self, run: SeedRun) -> None:
        """Draw at the next occasion."""
        self._drawn = 0.0


def _line(plan: Plan, run: SeedRun) -> str:
    where = plan.slots[run.slot]
    parts = [f"seed {run.seed:<4d}", f"{run.state:8s}"]
    if run.state in ("running", "finished"):
        standing = read_standing(run.folder, plan.monitor, plan.mode)
        parts.append(standing.text(plan.max_epochs, plan.monitor))
    if run.state == "running":
        parts.append(("on cuda " + ",".join(where)) if where else "")
        parts.append(_clock(time.monotonic() - run.started))
    if run.state == "failed":
        parts.append(f"{run.error}; log: {run.log}")
    return "  ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
