"""The table of a comparison, and its picture."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.paired import difference, mean_and_deviation, spread
from experiments.runs import heading, made_by
from experiments.ssa.work import ENSEMBLES, fork_of

__all__ = ["Table", "markdown", "picture", "write_csv"]

Part = dict[str, Any]


class Table(NamedTuple):
    """What every network scored: a list over seeds for each variant, dense training first."""

    parts: dict[str, list[Part]]

    @property
    def metric(self) -> str:
        """Name of the task's metric."""
        return next(iter(self.parts.values()))[0]["metric"]  # type: ignore[no-any-return]

    @property
    def quick(self) -> bool:
        """Whether a network is one of ``--quick``."""
        return any(part.get("quick", False) for parts in self.parts.values() for part in parts)

    @property
    def dense(self) -> list[float]:
        """Dense training, tested densely, by seed."""
        return self.values("dense", lambda part: part["dense"])

    def values(self, variant: str, pick: Callable[[Part], dict[str, float]]) -> list[float]:
        """One figure of a variant, by seed."""
        return [pick(part)[self.metric] for part in self.parts[variant]]


def rows_of(table: Table) -> list[tuple[str, str, list[float]]]:
    """Training, test and figures by seed, of everything that was tested."""
    rows = []
    for name, parts in table.parts.items():
        rows.append((name, "whole graph", table.values(name, lambda part: part["dense"])))
        if "tuned" in parts[0]:
            rows.append((f"{name}, then dense", "whole graph", table.values(name, lambda part: part["tuned"])))
        for keep in parts[0]["ensembles"]:
            for size in ENSEMBLES:
                pick = _pick(keep, size)
                tested = f"keep {keep}, " + ("one pass" if size == 1 else f"{size} passes")
                rows.append((name, tested, table.values(name, pick)))
    return rows


def _pick(keep: str, size: int) -> Callable[[Part], dict[str, float]]:
    return lambda part: part["ensembles"][keep][str(size)]


def markdown(table: Table, costs: dict[str, dict[str, float | None]], task: str) -> str:
    """The table as text."""
    first = next(iter(table.parts.values()))
    part, metric = first[0], table.metric
    better = "higher" if part["mode"] == "max" else "lower"
    title = (
        f"SSA on {part.get('data', task)}: test {metric.replace('_', ' ')} ({better} is better), {len(first)} seeds, "
        f"{part['epochs']} epochs, {part['parameters']:,} parameters, on {part['device']}"
    )
    lines = [
        f"# {heading(title, table.quick)}",
        "",
        made_by("experiments.ssa.compare"),
        "",
        "| training | test | mean ± deviation | less dense training, by seed [95 % interval] |",
        "|---|---|---:|---:|",
    ]
    dense, last = table.dense, part["epochs"] - fork_of(part["epochs"])
    for name, tested, values in rows_of(table):
        gaps = [mine - other for mine, other in zip(values, dense, strict=True)]
        same = name == "dense" and tested == "whole graph"
        lines.append(f"| {name} | {tested} | {spread(values, 3)} | {'' if same else difference(gaps, 3)} |")
    lines += ["", "## Is the ensemble better?", ""]
    lines += ["| training | 8 passes less one pass | 8 passes less the whole graph, same weights |", "|---|---:|---:|"]
    for name, parts in table.parts.items():
        for keep in parts[0]["ensembles"]:
            eight, one = (table.values(name, _pick(keep, size)) for size in (8, 1))
            whole = table.values(name, lambda part: part["dense"])
            pairs = [[a - b for a, b in zip(eight, other, strict=True)] for other in (one, whole)]
            lines.append(f"| {name}, keep {keep} | {difference(pairs[0], 3)} | {difference(pairs[1], 3)} |")
    lines += ["", "## A training step, alone on the device", ""]
    lines += ["| training | forward and backward, drawing included (ms) | peak above weights and batch (MiB) |"]
    lines += ["|---|---:|---:|"]
    for name, cost in costs.items():
        peak = "-" if cost["peak_mib"] is None else f"{cost['peak_mib']:.0f}"
        lines.append(f"| {name} | {cost['step_ms']:.1f} | {peak} |")
    lines += [
        "",
        "Intervals are Student's, of differences by seed. One pass, 2, 4 and 8 passes: means over all groups of that "
        f'size among 16 passes. "Then dense": the last {last} of {part["epochs"]} epochs on whole graphs, from the '
        "weights that SSA had then.",
    ]
    return "\n".join(lines) + "\n"


def write_csv(table: Table, path: Path) -> None:
    """One row for each training, test and seed, with metric."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["training", "test", "seed", table.metric])
        seeds = [part["seed"] for part in next(iter(table.parts.values()))]
        for name, tested, values in rows_of(table):
            writer.writerows([name, tested, seed, value] for seed, value in zip(seeds, values, strict=True))


def picture(table: Table, path: Path) -> None:
    """Metric and cross-entropy over the number of passes, mean and deviation over seeds; lines: the whole graph."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key in zip(figure.subplots(1, 2), (table.metric, "nll"), strict=True):
        for color, (name, parts) in enumerate(table.parts.items()):
            whole = statistics.fmean(part["dense"][key] for part in parts)
            if name == "dense":
                axes.axhline(whole, color="black", lw=1.2, label="dense, whole graph")
                continue
            keep = next(iter(parts[0]["ensembles"]))
            by_size = [[part["ensembles"][keep][str(size)][key] for part in parts] for size in ENSEMBLES]
            means, bars = zip(*map(mean_and_deviation, by_size), strict=True)
            axes.errorbar(ENSEMBLES, means, yerr=bars, fmt="o-", ms=4, capsize=3, color=f"C{color - 1}", label=name)
            axes.axhline(whole, color=f"C{color - 1}", lw=1, ls="--")
            tuned = statistics.fmean(part["tuned"][key] for part in parts)
            beside = ENSEMBLES[-1] * 1.3 * 1.13**color  # each has a place, where two are alike
            axes.plot([beside], [tuned], "*", ms=11, color=f"C{color - 1}", clip_on=False)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ENSEMBLES, [str(size) for size in ENSEMBLES])
        axes.set_xlabel("passes that are averaged")
        axes.set_ylabel("test cross-entropy (nats)" if key == "nll" else f"test {key.replace('_', ' ')}")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)
    title = "points: ensembles; dashed: the same weights on the whole graph; star: dense at the end"
    figure.suptitle(heading(title, table.quick), fontsize=10)
    figure.savefig(path, dpi=150)
