"""Rows as lines and files, and the ratios that are asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.benchmarks.files import by_section, head, timing, write_csv
from experiments.benchmarks.lists.jobs import SDPA
from experiments.benchmarks.lists.rows import MODES, Row

__all__ = ["line", "ratios", "write"]


def ratios(rows: list[Row]) -> list[str]:
    """The ratios that are asked for."""
    found = {(r.section, r.case, r.peer, r.what, r.mode): r.median for r in rows if r.median is not None}
    lines = []

    def ratio(name: str, section: str, case: str, theirs: list[str], ours: str, what: str, least: float) -> None:
        for mode in reversed(MODES):
            best = [(found.get((section, case, peer, what, mode)), peer) for peer in theirs]
            there = [(t, peer) for t, peer in best if t is not None]
            mine = found.get((section, case, ours, what, mode))
            if there and mine:
                t, peer = min(there)
                mark = "holds" if t / mine >= least else "MISSED"
                goal = f" (>= {least:g}: {mark})" if least else ""
                lines.append(f"{name}, {case}, {what}, {mode}: {peer} / {ours} = {t / mine:.2f}{goal}")

    every, both = [f"sdpa {name}" for name in SDPA], "forward+backward"
    for n in (1024, 2048, 4096, 8192, 16384):
        for part, least in ((4, 2.5), (8, 4.0)):
            for scheme in ("uniform", "windows"):
                ratio("SSA step", "ssa", f"N={n}", every, f"ours {scheme} 1/{part}", both, least if n >= 8192 else 0.0)
    for n in (4096, 8192, 16384):
        for what in ("forward", both):
            ratio("block lists", "blocks", f"n={n}", ["sdpa flash2"], "ours", what, 4.0)
            ratio("masks", "masks", f"n={n} 10%", ["sdpa flash2, no mask"], "ours, mask ready", what, 1 / 1.1)
    for what, least in (("forward", 3.5), (both, 2.2)):
        ratio("17", "masks", "n=197 25%", ["sdpa efficient, bool mask"], "ours, mask ready", what, least)
        ratio("17", "masks", "n=197 25%", ["sdpa cuDNN, bias"], "ours, mask ready", what, 1.0)
        ratio("17", "masks", "n=197 25%", ["flex"], "ours, mask ready", what, 1.0)
    return lines


def line(row: Row) -> str:
    time_ = "" if row.median is None else f"{row.median:9.4f} [{row.low:.4f}, {row.high:.4f}] ms"
    peak = "" if row.peak_mb is None else f"{row.peak_mb:9.1f} MB"
    wrong = "" if row.error is None else f"error {row.error:.1e}"
    name = f"{row.section:7}{row.case:12}{row.peer:27}{row.what:17}{row.mode:11}"
    return f"{name}{time_} {peak} {wrong} {row.text}".rstrip()


def write(folder: Path, rows: list[Row], lines: list[str], about: dict[str, Any]) -> None:
    """``lists.json``, ``lists.csv`` and ``lists.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"environment": about, "rows": [asdict(row) for row in rows], "ratios": lines}
    (folder / "lists.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    write_csv(folder / "lists.csv", Row, rows)
    text = [*head("Graphs that are drawn and graphs that are learned", about), "## Ratios", ""]
    text += [f"* {each}" for each in lines] or ["None of these rows is asked for."]
    columns = "| case | peer | pass | call | ms | memory MB | error |", "|---|---|---|---|---:|---:|---:|"
    told = "Milliseconds: median (quartiles). Memory: peak above the inputs."
    text += by_section(rows, lambda row: row.section, (told, "", *columns), _cells)
    (folder / "lists.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _cells(row: Row) -> str:
    ms = row.text if row.median is None else timing(row.median, row.low, row.high)
    peak = "" if row.peak_mb is None else f"{row.peak_mb:.1f}"
    wrong = "" if row.error is None else f"{row.error:.1e}"
    return f"| {row.case} | {row.peer} | {row.what} | {row.mode} | {ms} | {peak} | {wrong} |"
