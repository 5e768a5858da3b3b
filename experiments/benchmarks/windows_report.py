"""What the benchmark of graph windows says of its rows: goals, files, a line for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.benchmarks.files import by_section, timing, write_csv
from experiments.benchmarks.report import environment

__all__ = ["Row", "goals_of", "say", "write"]


@dataclass
class Row:
    """One line of the table."""

    workload: str
    peer: str
    what: str
    ms: float | None = None
    low: float | None = None
    high: float | None = None
    peak_mb: float | None = None
    error: float | None = None
    text: str = ""


def goals_of(rows: list[Row], shapes: list[str]) -> Iterator[str]:
    """The ratios that were asked for, beside their goals."""
    ms = {(row.workload, row.peer, row.what): row.ms for row in rows}

    def ratio(above: tuple[str, str, str], below: tuple[str, str, str]) -> float | None:
        a, b = ms.get(above), ms.get(below)
        return None if a is None or b is None else a / b

    def line(text: str, value: float | None, goal: float, at_most: bool) -> str:
        if value is None:
            return f"- not measured: {text}"
        met = value <= goal if at_most else value >= goal
        return f"- {'met' if met else 'MISSED'}: {text}: {value:.3g} (goal {'<=' if at_most else '>='} {goal:g})"

    for shape in shapes:
        for what in ("forward", "forward+backward"):
            ours = (shape, "ours", what)
            yield line(f"{shape}, {what}: ours / causal flash", ratio(ours, (shape, "causal, flash", what)), 1.1, True)
            for peer in ("dense additive mask, SDPA", "dense additive mask, eager"):
                yield line(f"{shape}, {what}: {peer} / ours", ratio((shape, peer, what), ours), 3.0, False)
    first, step = shapes[0], "forward+backward of 4 layers"
    model = (first, "model, windowed, graphattn (mask built in each step)", step)
    yield line("building the window / step of the model", ratio((first, "window", "build"), model), 0.05, True)


def write(folder: Path, rows: list[Row], goals: list[str], command: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = environment(command, 0)
    write_csv(folder / "windows.csv", Row, rows)
    content = {"environment": about, "goals": goals, "rows": [asdict(row) for row in rows]}
    (folder / "windows.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = ["# Graph windows", "", f"{about['device']}; torch {about['packages']['torch']}; {about['date']}.", ""]
    lines += ["Milliseconds: median (first to third quartile). Error: relative L2 against float32.", "", *goals]
    columns = "| peer | pass | ms | memory MB | error |", "|---|---|---:|---:|---:|"
    lines += by_section(rows, lambda row: row.workload, columns, _cells)
    (folder / "windows.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(row: Row) -> str:
    ms = row.text if row.ms is None else timing(row.ms, row.low, row.high)
    memory = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
    error = "" if row.error is None else f"{row.error:.1e}"
    return f"| {row.peer} | {row.what} | {ms} | {memory} | {error} |"


def say(row: Row) -> None:
    ms = row.text if row.ms is None else f"{row.ms:9.3f} ms"
    wrong = "" if row.error is None else f"  error {row.error:.1e}"
    print(f"{row.workload}: {row.peer}, {row.what}: {ms}{wrong}", flush=True)
