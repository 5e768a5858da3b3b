"""Tables and a picture of the propagators over the number of edges."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Kept", "Timed", "slopes", "write"]

_STEEPEST = 1.1  # slope of what still counts as linear


class Timed(NamedTuple):
    """Forward and backward of one propagator on one number of edges, in ms."""

    mover: str
    tokens: int
    edges: int
    products: int
    ms: float
    low: float
    high: float
    error: float | None
    """Relative, of the result and the gradient of the values; ``None``: not looked at on this size."""

    @property
    def each(self) -> float:
        """Milliseconds of a product."""
        return self.ms / self.products


class Kept(NamedTuple):
    """What one call keeps for its backward pass."""

    mover: str
    products: int
    """Of the forward pass."""
    backward: int
    """Of the backward pass, with those computed again."""
    states: int
    """Tensors of the size of the values that are there when the forward pass is over, its result among them."""
    peak_mb: float
    """Of all tensors, at most, forward and backward."""


def slopes(rows: list[Timed], last: int | None = None) -> dict[str, float]:
    """Least squares of log time of a product over log edges, for each propagator.

    Args:
        rows: The measurements, with more and more edges.
        last: Take so many of the largest only.
    """
    found = {}
    for name in dict.fromkeys(row.mover for row in rows):
        points = [(math.log(row.edges), math.log(row.each)) for row in rows if row.mover == name]
        points = points[-last:] if last else points
        x, y = (sum(column) / len(points) for column in zip(*points, strict=True))
        found[name] = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return found


def write(folder: Path, rows: list[Timed], kept: list[Kept], about: dict[str, Any]) -> str:
    """``edges.md``, ``edges.json``, ``edges.csv`` and ``edges.png``; the text."""
    text = _markdown(rows, kept, about)
    steep, ends = slopes(rows), slopes(rows, 2)
    content = {
        "environment": about,
        "slopes": steep,
        "slopes_of_the_last_two": ends,
        "linear": {name: max(slope, ends[name]) <= _STEEPEST for name, slope in steep.items()},
        "times": [{**row._asdict(), "ms_a_product": row.each} for row in rows],
        "kept": [row._asdict() for row in kept],
    }
    (folder / "edges.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "edges.md").write_text(text, encoding="utf-8")
    with (folder / "edges.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Timed._fields, "ms_a_product"])
        writer.writerows([*row, row.each] for row in rows)
    _draw(folder / "edges.png", rows, about)
    return text


def _markdown(rows: list[Timed], kept: list[Kept], about: dict[str, Any]) -> str:
    lines = [
        "# Propagators over the number of edges",
        "",
        f"{about['device']}, torch {about['packages']['torch']}, commit {about['commit']}, {about['date']}, seed "
        f"{about['seed']}: `{about['command']}`.",
        "",
        f"{rows[0].tokens:,} tokens, 2 heads of 16 channels, float32, softmax weights on a graph with hubs, discount "
        "0.9. Forward and backward to values and weights, median [quartiles] ms; the error is that of the "
        "result and the gradient of the values against SciPy in float64. A product is one with the weights or their "
        "transpose, of either pass, those computed again included. On a CPU, times are the processor time "
        "of one thread.",
        "",
        "| propagator | edges | products | ms | ms a product | error |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        ms = f"{row.ms:.4g} [{row.low:.4g}, {row.high:.4g}]"
        lines.append(f"| {row.mover} | {row.edges:,} | {row.products} | {ms} | {row.each:.3g} | {error} |")
    lines += [
        "",
        "Slope of log time of a product over log edges. What a product costs for each token is in it, so that it is "
        f"less than 1 where tokens have few edges; linear is at most {_STEEPEST:g}.",
        "",
        "| propagator | slope | of the last two sizes | linear |",
        "|---|---:|---:|---|",
    ]
    ends = slopes(rows, 2)
    lines += [
        f"| {name} | {slope:.2f} | {ends[name]:.2f} | {'yes' if max(slope, ends[name]) <= _STEEPEST else '**no**'} |"
        for name, slope in slopes(rows).items()
    ]
    lines += [
        "",
        "What a call keeps: tensors of the size of the values that exist when the forward pass is over (the result is "
        "one), products of either pass, and the most memory of all tensors at a time, backward included.",
        "",
        "| propagator | states kept | products forward | products backward | peak MB |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {row.mover} | {row.states} | {row.products} | {row.backward} | {row.peak_mb:.1f} |" for row in kept]
    return "\n".join(lines) + "\n"


def _draw(path: Path, rows: list[Timed], about: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, slope in slopes(rows).items():
        mine = [row for row in rows if row.mover == name]
        label = f"{name}, slope {slope:.2f}"
        axes.plot([row.edges for row in mine], [row.each for row in mine], marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="edges", ylabel="ms a product, forward and backward")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.suptitle(f"{about['device']}, commit {about['commit']}", fontsize="small")
    figure.savefig(path, dpi=150)
