"""The table of a comparison: means over seeds, paired differences with their intervals, files and a picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from experiments.paired import interval, mean_and_deviation, spread
from experiments.runs import devices_of, heading, made_by
from graphattn.training.results import Results

__all__ = ["markdown", "picture", "write_table"]


def write_table(table: dict[str, list[Results]], out: Path, quick: bool) -> str:
    """``compare.json``, ``compare.csv`` and ``compare.png``; the text of ``compare.md``."""
    rows = {key: [json.loads(result.to_json()) for result in found] for key, found in table.items()}
    (out / "compare.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    with (out / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["attention", "seed", "metric", "test_last", "test_best", "train_last", "epochs", "seconds"])
        for key, results in table.items():
            for r in results:
                figures = (r.last.test[r.metric], r.best.test[r.metric], r.last.train[r.metric])
                writer.writerow([key, r.seed, r.metric, *figures, r.epochs, round(r.seconds, 1)])
    picture(table, out / "compare.png", quick)
    return markdown(table, out.name, quick)


def markdown(table: dict[str, list[Results]], name: str, quick: bool = False) -> str:
    """The table as text: mean ± unbiased standard deviation over seeds, and differences to the first row by seed."""
    first = next(iter(table.values()))
    title = f"{name}: test {first[0].metric}, {len(first)} seeds, {first[0].epochs} epochs, on {devices_of(table)}"
    lines = [
        f"# {heading(title, quick)}",
        "",
        made_by("experiments.infsa.compare"),
        "",
        "| attention | parameters | last epoch | best validation | last epoch less the first row, by seed: mean ± "
        "deviation [95 % interval of the mean] | training, last epoch | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, results in table.items():
        metric = results[0].metric
        last = [r.last.test[metric] for r in results]
        gaps = [mine - r.last.test[metric] for mine, r in zip(last, first, strict=True)]
        columns = (last, [r.best.test[metric] for r in results], gaps, [r.last.train[metric] for r in results])
        cells = [spread(column, 2) for column in columns]
        if results is first:
            cells[2] = ""
        elif (bounds := interval(gaps)) is not None:
            cells[2] += " [{:+.2f}, {:+.2f}]".format(*bounds)
        seconds = mean_and_deviation([r.seconds for r in results])[0]
        lines.append(f"| {key} | {results[0].parameters:,} | {' | '.join(cells)} | {seconds:.0f} |")
    lines += ["", "The interval is Student's, over seeds that both rows share; seconds are of one run, beside others "
              "where runs went side by side."]  # fmt: skip
    return "\n".join(lines) + "\n"


def picture(table: dict[str, list[Results]], path: Path, quick: bool = False) -> None:
    """The test metric of each seed at the last epoch, with mean and standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * len(table) + 1, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, results in enumerate(table.values()):
        values = [r.last.test[r.metric] for r in results]
        mean, deviation = mean_and_deviation(values)
        axes.errorbar(place, mean, yerr=deviation, fmt="o", capsize=6, color="C0", markersize=8)
        step = min(0.05, 0.4 / len(values))  # beside the mean, and within the picture
        axes.scatter([place + 0.15 + step * n for n in range(len(values))], values, color="C1", s=18, zorder=3)
        axes.annotate(
            f"{mean:.1f}", (place, mean), textcoords="offset points", xytext=(-12, 0), ha="right", va="center"
        )
    axes.set_xticks(range(len(table)), list(table))
    axes.set_xlim(-0.6, len(table) - 0.4)
    metric = next(iter(table.values()))[0].metric
    axes.set_ylabel(f"test {metric.replace('_', ' ')} (%), last epoch")
    axes.set_title(heading("mean ± standard deviation (blue), seeds (orange)", quick), fontsize="medium")
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=150)
