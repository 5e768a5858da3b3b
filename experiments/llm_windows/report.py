"""The matrix of training and evaluation windows: table, picture, and what it says of the claims."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.llm_windows.claims import FULL, NAMES, claims
from experiments.runs import heading

__all__ = ["markdown", "matrix", "read_results", "write"]

Results = dict[str, dict[int, dict[str, Any]]]
"""By training window and seed: what ``result.json`` holds."""


def read_results(out: Path, seeds: int) -> Results:
    """The results that are there, of the first seeds."""
    found: Results = {}
    for window in NAMES:
        for seed in range(seeds):
            path = out / window / f"seed-{seed}" / "result.json"
            if path.is_file():
                found.setdefault(window, {})[seed] = json.loads(path.read_text(encoding="utf-8"))
    return found


def matrix(results: Results) -> Tensor:
    """float64 ``[seeds, 8, 8]``, test accuracy in % by training and evaluation window; of the seeds that all have."""
    seeds = sorted(set.intersection(*(set(found) for found in results.values()))) if len(results) == len(NAMES) else []
    rows = [[[results[t][seed]["test"][e] for e in NAMES] for t in NAMES] for seed in seeds]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(seeds), len(NAMES), len(NAMES))


def _reliance(results: Results) -> dict[str, list[float]]:
    """Of plain training, by level and seed."""
    found: dict[str, list[float]] = {}
    for run in results[FULL].values():
        for level, value in run["reliance"].items():
            found.setdefault(level, []).append(value)
    return found


def markdown(results: Results, facts: Mapping[str, Any]) -> str:
    """Matrix and claims as text."""
    table = matrix(results)
    one = next(iter(next(iter(results.values())).values()))
    config = one["config"]
    seconds = [r["seconds_in_all"] for found in results.values() for r in found.values()]
    lines = [
        f"# {heading('Windows of a graph: ' + one['task'], facts['quick'])}",
        "",
        f"    {facts['command']}",
        "",
        f"{one['device']}; Python {facts['python']}, PyTorch {facts['torch']}; commit {facts['commit']}; "
        f"{facts['date']}. "
        f"{one['parameters']:,} parameters, {config['layers']} layers of width {config['width']}, {config['steps']} "
        f"steps of {config['batch']} prompts of up to {one['tokens']} tokens; "
        f"{one['nodes']['train']:,} / {one['nodes']['val']:,} / {one['nodes']['test']:,} nodes. Seconds a run, with "
        f"its evaluations: {statistics.fmean(seconds):.0f} (largest {max(seconds):.0f}).",
        "",
        "Trained from scratch: the paper's accuracies, which are of a pretrained 7B model, are not reproduced; the "
        "mask, the shape of the matrix and the diagnostics are.",
        "",
        f"Test accuracy in %, mean ± deviation over {len(table)} seeds (exact name of the class, among all words); "
        f"a row a training window, a column an evaluation window. The largest class has {one['majority']:.1f} %"
        + "".join(f"; {name} {value:.1f} %" for name, value in facts.get("references", {}).items())
        + ".",
        "",
        f"| trained in | {' | '.join(NAMES)} |",
        "|---|" + "---:|" * len(NAMES),
    ]
    if not len(table):
        return "\n".join([*lines, "", "No seed has all windows yet."]) + "\n"
    mean, deviation = spread(table)
    for row, name in enumerate(NAMES):
        cells = [f"{m:.1f} ± {d:.1f}" for m, d in zip(mean[row].tolist(), deviation[row].tolist(), strict=True)]
        cells[row] = f"**{cells[row]}**"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "## The paper's claims at this scale",
        "",
        "Differences are paired by seed, ± half of their 95 % interval (Student's t); undecided where it reaches past "
        "the threshold.",
        "",
        "| claim | found | |",
        "|---|---|---|",
        *(f"| {claim.text} | {claim.found} | **{claim.verdict}** |" for claim in claims(table, _reliance(results))),
    ]
    return "\n".join(lines) + "\n"


def spread(table: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation over seeds (0 for one)."""
    return table.mean(0), table.std(0) if len(table) > 1 else torch.zeros_like(table[0])


def write(folder: Path, results: Results, facts: Mapping[str, Any]) -> str:
    """``compare.md``, ``compare.json``, ``matrix.csv`` and ``matrix.png``; the text."""
    folder.mkdir(parents=True, exist_ok=True)
    text, table = markdown(results, facts), matrix(results)
    (folder / "compare.md").write_text(text, encoding="utf-8")
    rows = {"facts": dict(facts), "windows": NAMES, "test": table.tolist(), "runs": results}
    if len(table):
        rows["claims"] = [{**claim._asdict(), "verdict": claim.verdict} for claim in claims(table, _reliance(results))]
        title = f"{facts['task']}, mean ± deviation of {len(table)} seeds"
        _draw(table, heading(title, facts["quick"]), folder / "matrix.png")
    (folder / "compare.json").write_text(json.dumps(rows, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")
    with (folder / "matrix.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("seed", "trained", "evaluated", "test_accuracy"))
        for train, found in results.items():
            for seed, result in found.items():
                writer.writerows((seed, train, name, value) for name, value in result["test"].items())
    return text


def _draw(table: Tensor, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    from graphattn.insight import plot_table

    figure = Figure(figsize=(7.2, 6), layout="constrained")
    mean, deviation = spread(table)
    axes = plot_table(
        *(mean, NAMES, NAMES),
        deviation=deviation,
        label="test accuracy (%)",
        row_label="trained in",
        column_label="evaluated in",
        ax=figure.subplots(),
    )
    axes.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=150)
