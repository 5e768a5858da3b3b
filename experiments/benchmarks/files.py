"""What the reports of all benchmarks write alike."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["by_section", "head", "timing", "write_csv"]

RowT = TypeVar("RowT")


def write_csv(path: Path, kind: type, rows: Iterable[Any]) -> None:
    """Rows of a dataclass."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def head(title: str, about: dict[str, Any]) -> list[str]:
    """A heading, where and with what it was measured, and the command; ``about``: an
    :func:`~experiments.benchmarks.report.environment`."""
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items() if number)
    return [
        f"# {title}",
        "",
        f"{about['device']}, driver {about['driver']}, CUDA {about['cuda']}; {packages}; "
        f"commit {about['commit']}, seed {about['seed']}, {about['date']}.",
        "",
        f"    {about['command']}",
        "",
    ]


def by_section(
    rows: Sequence[RowT], section: Callable[[RowT], str], top: Sequence[str], cells: Callable[[RowT], str]
) -> list[str]:
    """A table for each section, under its name and the lines ``top``."""
    lines = []
    for name in dict.fromkeys(map(section, rows)):
        lines += ["", f"## {name}", "", *top, *(cells(row) for row in rows if section(row) == name)]
    return lines


def timing(ms: float, low: float | None, high: float | None) -> str:
    """A median and its quartiles."""
    return f"{ms:.4g} ({low:.4g} to {high:.4g})"
