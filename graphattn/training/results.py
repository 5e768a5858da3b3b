"""The final table of a run. Reading and printing it needs neither torch nor Lightning."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Figures", "Results", "read_results", "without_nan"]


@dataclass
class Figures:
    """What one checkpoint of a run scores.

    Args:
        epoch: Epoch it was taken after, counted from 1.
        train: Training metrics of that epoch, measured while training (dropout on, weights moving).
        val: Validation metrics of that epoch.
        test: Test metrics.
    """

    epoch: int
    train: dict[str, float] = field(default_factory=dict)
    val: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)


@dataclass
class Results:
    """The outcome of a run: test figures at the last epoch and at the best validation epoch, both.

    Args:
        name: Name of the run.
        seed: Its seed.
        metric: The metric that chose the best epoch.
        last: The model of the last epoch (what Dwivedi & Bresson report).
        best: The model of the epoch with the best validation metric.
        epochs: Epochs trained.
        max_epochs: Epochs asked for; fewer are trained when the learning rate or patience ran out.
        seconds: Training and validation time, all sessions of the run together.
        parameters: Number of the model's parameters, embeddings and frozen ones included.
        device: What it ran on.
        precision: Lightning's name of the precision.
        folder: The run's folder.
    """

    name: str
    seed: int
    metric: str
    last: Figures
    best: Figures
    epochs: int
    max_epochs: int
    seconds: float
    parameters: int
    device: str
    precision: str
    folder: str

    def to_json(self) -> str:
        """JSON text; a figure that is not a number becomes null."""
        return json.dumps(without_nan(asdict(self)), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Read :meth:`to_json`'s text."""
        values = json.loads(text)
        return cls(**{**values, "last": Figures(**values["last"]), "best": Figures(**values["best"])})

    def to_markdown(self) -> str:
        """The table that a person reads."""
        lines = [
            f"# {self.name}, seed {self.seed}",
            "",
            f"| {self.metric} | epoch | train | validation | test |",
            "|---|---:|---:|---:|---:|",
        ]
        for label, figures in (("last epoch", self.last), ("best validation", self.best)):
            cells = [_cell(stage.get(self.metric)) for stage in (figures.train, figures.val, figures.test)]
            lines.append(f"| {label} | {figures.epoch} | {' | '.join(cells)} |")
        others = [name for name in self.last.test if name != self.metric]
        lines += ["", "| test | last epoch | best validation |", "|---|---:|---:|"]
        lines += [f"| {name} | {_cell(self.last.test[name])} | {_cell(self.best.test.get(name))} |" for name in others]
        minutes, seconds = divmod(round(self.seconds), 60)
        lines += [
            "",
            f"{self.parameters:,} parameters, {self.epochs} epochs in {minutes} min {seconds} s on {self.device}, "
            f"precision {self.precision}.",
            "",
        ]
        return "\n".join(lines)


def read_results(folder: str | Path) -> Results | None:
    """The results of a finished run, or ``None`` if the folder holds none."""
    path = Path(folder) / "results.json"
    return Results.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"


def without_nan(value: object) -> object:
    """The same plain values, with ``None`` for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
