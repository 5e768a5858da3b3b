"""The table, its JSON and its picture."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.benchmarks.measure import Timing
from experiments.benchmarks.report import environment
from experiments.examples.paired.cases import OURS, PYG
from experiments.examples.paired.run import Pair
from experiments.paired import half_width
from experiments.runs import heading

__all__ = ["Interval", "about", "draw", "markdown", "paired_difference", "write"]


class Interval(NamedTuple):
    """A mean and half the width of its 95 % interval; of one value, the width is not known (NaN), of none, neither."""

    mean: float
    half: float


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean of ours - theirs over paired seeds, with Student's t for as many seeds as there are."""
    gaps = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    if not gaps:
        return Interval(math.nan, math.nan)
    return Interval(statistics.fmean(gaps), half_width(gaps))


def about(command: str, seeds: int, device: str, length: str) -> dict[str, Any]:
    """Versions, hardware, commit, command, how long it trains, and date."""
    found = environment([command], 0)
    found.pop("seed")
    on_gpu = torch.device(device).type == "cuda"
    found["device"] = torch.cuda.get_device_name() if on_gpu else _cpu()
    found |= {"length": length, "seeds": list(range(seeds))}
    return {**found, "threads": torch.get_num_threads(), "cores": os.cpu_count()}


def write(folder: Path, pairs: list[Pair], skipped: dict[str, str], facts: dict[str, Any]) -> None:
    """``compare.md``, ``compare.json`` and, where there is something to draw, ``compare.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(pair), "difference": _difference(pair)} for pair in pairs]
    rows = [{**row, "ms": {side: timing._asdict() for side, timing in row["ms"].items()}} for row in rows]
    rows = [{**row, "difference": row["difference"]._asdict()} for row in rows]
    content = {"environment": facts, "skipped": skipped, "pairs": rows}
    text = json.dumps(content, indent=1).replace("NaN", "null")
    (folder / "compare.json").write_text(text + "\n", encoding="utf-8")
    (folder / "compare.md").write_text(markdown(pairs, skipped, facts), encoding="utf-8")
    if pairs:
        draw(pairs, folder / "compare.png", facts["length"] == "quick")


def markdown(pairs: list[Pair], skipped: dict[str, str], facts: dict[str, Any]) -> str:
    """The table as text."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items() if number)
    seeds, scores = len(facts["seeds"]), ""
    if seeds:
        scores = f"Test score, mean of {seeds} seeds, and graphattn - PyG over paired seeds with its 95 % interval "
        scores += "(Student's t). "
    lines = [
        f"# {heading('One import swapped', facts['length'] == 'quick')}",
        "",
        f"    {facts['command']}",
        "",
        f"{facts['device']}, {facts['threads']} thread(s); Python {facts['python']}, {packages}; commit "
        f"{facts['commit']}; {facts['date']}.",
        "",
        f"{scores}ms: one forward and backward pass of one batch, median (quartiles) of turns. "
        "MB: peak of that pass above what was held before it. Ratios are PyG / graphattn: above 1, ours takes less.",
        "",
        "| example | score | PyG | graphattn | difference | PyG, ms | graphattn, ms | ratio | PyG, MB | graphattn, MB "
        "| ratio |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for pair in pairs:
        digits = 2 if "%" in pair.metric else 4
        means, gap = ["", ""], _difference(pair)
        if pair.scores:
            means = [f"{statistics.fmean(pair.scores[side]):.{digits}f}" for side in (PYG, OURS)]
        mean = "" if math.isnan(gap.mean) else f"{gap.mean:+.{digits}f}"
        half = "" if math.isnan(gap.half) else f" ± {gap.half:.{digits}f}"
        arrow = "↑" if pair.more_is_better else "↓"
        cells = [pair.case, f"{pair.metric} {arrow}", *means, f"{mean}{half}"]
        cells += [*(_timing(pair.ms[side]) for side in (PYG, OURS)), f"{_time_ratio(pair):.2f}"]
        memory = [pair.memory_mb.get(side) for side in (PYG, OURS)]
        ratio = _memory_ratio(pair)
        cells += ["" if mb is None else f"{mb:.1f}" for mb in memory] + ["" if ratio is None else f"{ratio:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "The same function, before training: relative differences without dropout.", ""]
    lines += ["| example | parameters | loss | gradients | command |", "|---|---:|---:|---:|---|"]
    for pair in pairs:
        gaps = f"{pair.loss_difference:.1e} | {pair.gradient_difference:.1e}"
        lines.append(f"| {pair.case} | {pair.parameters:,} | {gaps} | `{pair.command}` |")
    lines += ["", *(f"* {name} skipped: {why}" for name, why in skipped.items())] if skipped else []
    return "\n".join(lines) + "\n"


def draw(pairs: list[Pair], path: Path, quick: bool = False) -> None:
    """Left, the differences of scores with their intervals, if there are any; right, how many times ours PyG takes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = any(pair.scores for pair in pairs)
    figure = Figure(figsize=(9.5 if scored else 6.5, 1.6 + 0.5 * len(pairs)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if scored else 1, sharey=True, squeeze=False)[0]
    left, right = panels[0], panels[-1]
    names = [pair.case for pair in pairs]
    for height, pair in enumerate(pairs):
        if pair.scores:
            gap = _difference(pair)
            scale = (1 if pair.more_is_better else -1) * 100 / abs(statistics.fmean(pair.scores[PYG]))
            half = 0 if math.isnan(gap.half) else gap.half * abs(scale)
            left.errorbar(gap.mean * scale, height, xerr=half, fmt="o", color="tab:blue", capsize=4)
        ratio = _memory_ratio(pair)
        right.barh(height - 0.18, _time_ratio(pair), 0.34, color="tab:blue", label=None if height else "time")
        if ratio is not None:
            right.barh(height + 0.18, ratio, 0.34, color="tab:orange", label=None if height else "memory")
    for axes in panels:
        axes.axvline(1 if axes is right else 0, color="black", linewidth=1)
        axes.grid(axis="x", alpha=0.3)
    for bars in right.containers:
        right.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
    right.margins(x=0.12)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    if scored:
        left.set_xlabel("better than PyG by, % of PyG's score\n(paired seeds, 95 % interval)")
    right.set_xlabel("PyG / graphattn, forward + backward")
    right.legend(fontsize="small")
    figure.suptitle(heading("one import swapped", quick), fontsize="medium")
    figure.savefig(path, dpi=150)


def _difference(pair: Pair) -> Interval:
    return paired_difference(pair.scores.get(OURS, ()), pair.scores.get(PYG, ()))


def _time_ratio(pair: Pair) -> float:
    return pair.ms[PYG].median / pair.ms[OURS].median


def _memory_ratio(pair: Pair) -> float | None:
    theirs, mine = pair.memory_mb.get(PYG), pair.memory_mb.get(OURS)
    return theirs / mine if theirs and mine else None


def _timing(timing: Timing) -> str:
    return f"{timing.median:.4g} ({timing.low:.4g} to {timing.high:.4g})"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"
