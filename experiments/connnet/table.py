"""The tables of a comparison: means over seeds and paired differences with their intervals."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

from experiments.connnet.variants import BASELINE, LONG
from experiments.paired import difference, interval, spread
from experiments.runs import devices_of, heading, made_by
from graphattn.training.results import Results

__all__ = ["markdown", "write_table"]

DIGITS = 3


def write_table(table: dict[str, list[Results]], out: Path, quick: bool) -> str:
    """``compare.json`` and ``compare.csv``; the text of ``compare.md``."""
    rows = {name: [json.loads(result.to_json()) for result in found] for name, found in table.items()}
    (out / "compare.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    metrics = metrics_of(table)
    with (out / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", *metrics, "epochs", "seconds", "parameters"])
        for name, results in table.items():
            for r in results:
                figures = [r.last.test[metric] for metric in metrics]
                writer.writerow([name, r.seed, *figures, r.epochs, round(r.seconds, 1), r.parameters])
    return markdown(table, out.name, quick)


def metrics_of(table: dict[str, list[Results]]) -> list[str]:
    """The metrics that are reported: of the test, but for the loss, which differs between heads."""
    return [metric for metric in next(iter(table.values()))[0].last.test if metric != "loss"]


def markdown(table: dict[str, list[Results]], name: str, quick: bool = False) -> str:
    """The tables as text; figures are of the last epoch, so that nothing is chosen by them."""
    first, metrics = table[BASELINE][0], metrics_of(table)
    head = f"| | {' | '.join(metrics)} |"
    rule = "|---" + "|---:" * len(metrics) + "|"
    title = f"{name}: test, last of {first.epochs} epochs, {len(table[BASELINE])} seeds, on {devices_of(table)}"
    lines = [
        f"# {heading(title, quick)}",
        "",
        made_by("experiments.connnet.compare"),
        "",
        "Mean ± unbiased standard deviation over seeds.",
        "",
        head[:-1] + "| parameters | seconds |",
        rule + "---:|---:|",
    ]
    for variant, results in table.items():
        cells = [spread([r.last.test[metric] for r in results], DIGITS) for metric in metrics]
        seconds = statistics.fmean(r.seconds for r in results)
        lines.append(f"| {variant} | {' | '.join(cells)} | {results[0].parameters:,} | {seconds:.0f} |")
    lines += [
        "",
        "## Paired differences, by seed: mean [95 % interval]",
        "",
        f"First less `{BASELINE}` (rows with long range: less `{BASELINE}{LONG}`), then what long range changes. "
        "Student's interval over seeds; * where it excludes 0.",
        "",
        head,
        rule,
    ]
    for variant, results in table.items():
        base = BASELINE + (LONG if variant.endswith(LONG) else "")
        if variant != base:
            lines.append(_differences(variant, results, table[base], metrics))
    for variant, results in table.items():
        if variant.endswith(LONG):
            short = variant.removesuffix(LONG)
            lines.append(_differences(f"{short}: long range less none", results, table[short], metrics))
    return "\n".join(lines) + "\n"


def _differences(label: str, results: list[Results], base: list[Results], metrics: list[str]) -> str:
    cells = []
    for metric in metrics:
        gaps = [r.last.test[metric] - b.last.test[metric] for r, b in zip(results, base, strict=True)]
        bounds = interval(gaps)
        star = "*" if bounds is not None and (bounds[0] > 0 or bounds[1] < 0) else ""
        cells.append(difference(gaps, DIGITS) + star)
    return f"| {label} | {' | '.join(cells)} |"
