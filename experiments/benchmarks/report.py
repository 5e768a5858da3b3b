"""Rows to files: CSV, JSON with everything that a reader needs to repeat them, Markdown, a picture."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.files import head, timing, write_csv
from experiments.benchmarks.row import Row
from experiments.benchmarks.section import read_journal
from experiments.benchmarks.targets import DEVICE, Result, results, slower_than

__all__ = ["environment", "markdown", "read", "write"]

_PACKAGES = "torch triton torch-geometric torch-scatter dgl anemoi-models turbo-gnn numba numpy".split()

_MODULES = {
    "torch-geometric": "torch_geometric",
    "torch-scatter": "torch_scatter",
    "anemoi-models": "anemoi",
    "turbo-gnn": "turbo_gnn",
}


def environment(command: list[str], seed: int, device: str | None = None) -> dict[str, Any]:
    """Versions, device (the GPU, where there is one and ``device`` is not the CPU), commit, command, seed and date."""
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(command),
        "seed": seed,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def read(journals: list[Path]) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Rows and facts of the sections. A peer that began and left no row took its process with it."""
    rows: list[Row] = []
    facts: dict[str, dict[str, float]] = {}
    for path in journals:
        entries = read_journal(path)
        mine = [Row(**entry["row"]) for entry in entries if "row" in entry]
        seen = {(row.workload, row.peer) for row in mine}
        for entry in entries:
            if "facts" in entry:
                facts[entry["facts"]["workload"]] = entry["facts"]
            if "lost" in entry and tuple(entry["lost"][:2]) not in seen:
                workload, peer, why = entry["lost"]
                mine.append(Row(path.stem, workload, peer, "*", "failed", why))
        rows += mine
    return rows, facts


def write(folder: Path, rows: list[Row], facts: dict[str, dict[str, float]], about: dict[str, Any]) -> None:
    """``rows.csv``, ``benchmark.json``, ``benchmark.md`` and, where there is something to draw, ``benchmark.png``."""
    from experiments.benchmarks.picture import draw

    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "rows.csv", Row, (replace(row, text=row.text.replace("\n", " ")) for row in rows))
    found = results(rows, facts, about["device"])
    content = {
        "environment": about,
        "facts": facts,
        "targets": [_as_json(result) for result in found],
        "rows": [asdict(row) for row in rows],
    }
    (folder / "benchmark.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "benchmark.md").write_text(markdown(rows, facts, about), encoding="utf-8")
    draw(rows, folder / "benchmark.png", about)


def markdown(rows: list[Row], facts: dict[str, dict[str, float]], about: dict[str, Any]) -> str:
    """The tables as text."""
    lines = [
        *head("Benchmark", about),
        "Milliseconds: median (first to third quartile). Error: the worst relative L2 error of output and gradients "
        "against plain torch in float32. Memory: peak above the inputs.",
    ]
    lines += ["", "## Ratios", "", *_ratio_table(results(rows, facts, about["device"]))]
    worse = slower_than(rows)
    lines += ["", "## Where ours is slower by more than 3 %", ""]
    lines += [
        f"* {mine.workload}, {mine.what}: ours {mine.ms:.4g} ms, {row.peer} {row.ms:.4g} ms" for mine, row in worse
    ] or ["Nowhere."]
    for section in dict.fromkeys(row.section for row in rows):
        lines += ["", f"## {section}", "", *_section_table([row for row in rows if row.section == section], facts)]
    notes = dict.fromkeys(f"* {row.peer}: {row.text}." for row in rows if row.status == "ok" and row.text)
    return "\n".join([*lines, "", "## Notes", "", *notes]) + "\n"


def _ratio_table(found: list[Result]) -> list[str]:
    if not found:
        return ["No target is about these workloads."]
    lines = ["| # | ratio | workload, pass | target | stretch | measured | met? |", "|---|---|---|---:|---:|---:|---|"]
    for result in found:
        target = result.target
        sign = "<=" if target.at_most else ">="
        measured = f"{result.value:.3g}" if result.value is not None else f"🔴 {result.why}"
        met = {True: "yes", False: "**no**", None: "-" if result.judged else f"for an {DEVICE}"}[result.met]
        number = str(target.number or "CPU")
        cells = [number, target.text, f"{target.workload}, {target.what}"]
        lines.append(f"| {' | '.join(cells)} | {sign} {target.goal:g} | {target.stretch:g} | {measured} | {met} |")
    return lines


def _section_table(rows: list[Row], facts: dict[str, dict[str, float]]) -> list[str]:
    lines = ["| workload | peer | pass | ms | memory MB | error | times ours |", "|---|---|---|---:|---:|---:|---:|"]
    ours = {(row.workload, row.what): row.ms for row in rows if row.peer == "ours" and row.ms is not None}
    for row in rows:
        if row.ms is None:
            lines.append(f"| {row.workload} | {row.peer} | {row.what} | 🔴 {row.status}: {_cell(row.text)} | | | |")
            continue
        mine = ours.get((row.workload, row.what))
        ms = timing(row.ms, row.ms_low, row.ms_high)
        memory = "" if row.peak_mb is None else f"{row.peak_mb:.1f}"
        error = "" if row.error is None else f"{row.error:.1e}"
        ratio = "" if mine is None else f"{row.ms / mine:.2f}"
        lines.append(f"| {row.workload} | {row.peer} | {row.what} | {ms} | {memory} | {error} | {ratio} |")
    described = []
    for name in dict.fromkeys(row.workload for row in rows):
        known = {key: value for key, value in facts.get(name, {}).items() if key in ("tokens", "edges", "max_degree")}
        if known:
            words = ", ".join(f"{value:,.0f} {key.replace('_', ' ')}" for key, value in known.items())
            described.append(f"* {name}: {words}")
    return [*lines, "", *described]


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _as_json(result: Result) -> dict[str, Any]:
    return {**result.target._asdict(), "measured": result.value, "met": result.met, "why": result.why}


def _commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
        root = Path(__file__).resolve().parent
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "none"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # on the path, perhaps, without having been installed
        return "unknown version" if find_spec(_MODULES.get(package, package)) is not None else None
