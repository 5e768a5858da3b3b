"""The picture of a row: every seed, and the published entries."""

from __future__ import annotations

import io
from pathlib import Path

from graphattn._files import write_atomically
from graphattn.training.leaderboard.row import Row

__all__ = ["plot_row"]


def plot_row(row: Row, path: Path) -> None:
    """Draw test figures, mean and standard deviation, best on top; the row's own seeds as dots.

    Args:
        row: The row.
        path: The PNG file, written atomically.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    hidden = row.test.mean is None  # the large-scale challenge keeps the test labels
    ours = row.validation if hidden else row.test
    entries = [("C3", row.options.method + (" (draft)" if row.draft else ""), ours.mean, ours.std)]
    for entry in row.options.published:
        figures = (entry.validation, entry.validation_std) if hidden else (entry.test, entry.test_std)
        entries.append(("C0", entry.method, *figures))
    points = [(colour, name, mean, std) for colour, name, mean, std in entries if mean is not None]
    if not points:
        return
    points.sort(key=lambda point: point[2], reverse=row.mode == "min")  # upwards
    figure = Figure(figsize=(7, 1.4 + 0.36 * len(points)), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    axes = figure.subplots()
    for place, (colour, _, mean, std) in enumerate(points):
        axes.errorbar(mean, place, xerr=std, fmt="s", color=colour, capsize=3, markersize=5)
        if colour == "C3":
            dots = [found.validation if hidden else found.test for found in row.seeds]
            axes.plot(dots, [place] * len(dots), "o", color=colour, alpha=0.35, markersize=5)
    axes.set_yticks(range(len(points)), [name for _, name, *_ in points])
    axes.set_xlabel(
        f"{'validation' if hidden else 'test'} {row.label}, {'lower' if row.mode == 'min' else 'higher'} is better"
    )
    seeds = f"this run: {len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    axes.set_title(f"{row.options.dataset}: mean ± standard deviation; {seeds}", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
