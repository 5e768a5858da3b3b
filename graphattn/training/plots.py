"""The picture of a run."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from graphattn._files import write_atomically

__all__ = ["metric_label", "plot_curves"]

_LABELS = {
    "loss": "loss",
    "mae": "mean absolute error",
    "accuracy": "accuracy (%)",
    "balanced_accuracy": "balanced accuracy (%)",
    "roc_auc": "ROC-AUC (%)",
    "average_precision": "average precision",
    "rmse": "RMSE",
    "mrr": "MRR (%)",
}


def metric_label(name: str) -> str:
    """A metric's name and unit for people: ``ROC-AUC (%)``."""
    if name.startswith("hits@"):
        return f"{name.capitalize()} (%)"
    return _LABELS.get(name, name.replace("_", " "))


def plot_curves(rows: Sequence[dict[str, float]], path: str | Path, metric: str = "loss") -> None:
    """Draw loss and metrics over epochs, training and validation together, one panel for each quantity.

    Args:
        rows: One dict an epoch with ``epoch`` and ``train/<name>``, ``val/<name>`` entries.
        path: The PNG file, written atomically.
        metric: The run's own metric, drawn beside those that all runs share.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    hits = sorted({name[4:] for row in rows for name in row if name.startswith("val/hits@")})
    panels = {name: curves for name in (*_LABELS, *hits, metric) if (curves := _curves(rows, name))}
    if not panels:
        return
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, curves) in zip(places, panels.items(), strict=True):
        for label, points in curves.items():
            mark = "o" if len(points) == 1 else ""
            axes.plot(*zip(*points, strict=True), marker=mark, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(metric_label(name))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _curves(rows: Sequence[dict[str, float]], name: str) -> dict[str, list[tuple[float, float]]]:
    """The finite points (epoch, value) of one quantity, by stage; stages without any are left out."""
    found = {}
    for stage, label in (("train", "training"), ("val", "validation")):
        points = [(row["epoch"] + 1, row.get(f"{stage}/{name}", math.nan)) for row in rows]
        points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        if points:
            found[label] = points
    return found
