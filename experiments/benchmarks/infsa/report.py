"""What the rows say: targets, slopes, tables, a picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.infsa.operations import HEADS, LINEAR, OURS, ROW, SDPA, WIDTH, floor_bytes
from experiments.benchmarks.row import Row

__all__ = ["Verdict", "slope", "verdicts", "write"]

_TARGET_TOKENS = 16_384
_FROM = 16_384  # tokens from which the slope counts: below, it is launches
_STEP, _MOST = 65_536, 331_776


class Verdict(NamedTuple):
    """A target of issue 5, and what was measured."""

    text: str
    value: float | None
    """``None`` where a row is missing."""
    goal: float
    unit: str = "x"
    at_most: bool = False
    stretch: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached."""
        if self.value is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def __str__(self) -> str:
        found = "not measured" if self.value is None else f"{self.value:.3g}{self.unit}"
        word = {True: "met", False: "MISSED", None: "open"}[self.met]
        more = "" if self.stretch is None else f"; stretch {self.stretch:g}{self.unit}"
        goal = f"{'at most' if self.at_most else 'at least'} {self.goal:g}{self.unit}{more}"
        return f"| {self.text} | {goal} | {found} | {word} |"


class _Rows:
    def __init__(self, rows: list[Row]) -> None:
        self.rows = {(row.workload, row.peer, row.what): row for row in rows}

    def ms(self, workload: str, peer: str, what: str) -> float | None:
        """The time of a row; on the device alone, ``(graph)``, that of the call itself where it needs no graph."""
        row = self.rows.get((workload, peer, what))
        if row is None and what.endswith(" (graph)"):
            row = self.rows.get((workload, peer, what.removesuffix(" (graph)")))
        return None if row is None else row.ms

    def best(self, workload: str, peers: tuple[str, ...], what: str) -> float | None:
        return min((ms for peer in peers if (ms := self.ms(workload, peer, what)) is not None), default=None)


def verdicts(rows: list[Row], bytes_a_second: float | None) -> list[Verdict]:
    """The targets of issue 5."""
    table, found = _Rows(rows), []
    at = f"operation {_TARGET_TOKENS}"
    for name in (LINEAR, ROW):
        for what, goal in (("forward+backward (graph)", 25.0), ("forward+backward", 12.0)):
            value = _quotient(table.best(at, SDPA, what), table.ms(at, name, what))
            found.append(Verdict(f"{name}, {_TARGET_TOKENS:,} tokens, {what}: fastest SDPA / ours", value, goal))
    for tokens in _tokens(rows, "operation"):
        if tokens < 65_536 or bytes_a_second is None:
            continue
        for name in (LINEAR, ROW):
            for what in ("forward", "forward+backward"):
                floor = floor_bytes(tokens, name, what) / bytes_a_second * 1e3
                value = _quotient(table.ms(f"operation {tokens}", name, f"{what} (graph)"), floor)
                text = f"{name}, {tokens:,} tokens, {what} (graph): ours / floor of {floor:.3f} ms"
                found.append(Verdict(text, value, 2.0, at_most=True))
    for tokens in (4096, 8192, 16_384):
        at = f"operation {tokens}"
        for what in ("forward", "forward+backward"):
            mine = table.ms(at, OURS[0], f"{what} (graph)")
            flash = table.ms(at, "SDPA flash", f"{what} (graph)")
            cudnn = table.ms(at, "SDPA cuDNN", f"{what} (graph)")
            text = f"{OURS[0]}, {tokens:,} tokens, {what} (graph): ours / flash 2"
            stretch = _quotient(cudnn, flash)
            stretch = None if stretch is None else round(stretch, 2)
            found.append(Verdict(text, _quotient(mine, flash), 1.1, at_most=True, stretch=stretch))
    line = slope(rows, "linear_infsa")
    found.append(Verdict(f"linear_infsa network: slope of log time from {_FROM:,} tokens", line, 1.1, "", at_most=True))
    for tokens, what in ((_MOST, "forward"), (_STEP, "training step")):
        row = table.rows.get((f"network {tokens}", "linear_infsa", what))
        if row is not None:
            found.append(
                Verdict(f"linear_infsa network: {what} of {tokens:,} tokens fits", float(row.ms is not None), 1, "")
            )
    return found


def slope(rows: list[Row], peer: str) -> float | None:
    """Least squares of log time over log tokens, of a network's forward pass where it is not launches."""
    mine = [row for row in rows if (row.peer, row.what) == (peer, "forward") and row.workload.startswith("network")]
    points = [(math.log(int(row.workload.split()[1])), math.log(row.ms)) for row in mine if row.ms]
    points = [point for point in points if point[0] >= math.log(_FROM)]
    if len(points) < 2:
        return None
    middle = [sum(column) / len(points) for column in zip(*points, strict=True)]
    over = sum((x - middle[0]) * (y - middle[1]) for x, y in points)
    return over / sum((x - middle[0]) ** 2 for x, _ in points)


def write(folder: Path, rows: list[Row], about: dict[str, Any], bytes_a_second: float | None) -> str:
    """``infsa.json``, ``infsa.md`` and ``infsa.png`` (rows.csv is there already); the text."""
    found = verdicts(rows, bytes_a_second)
    text = _markdown(rows, found, about, bytes_a_second)
    content = {
        "environment": about,
        "copy_bytes_a_second": bytes_a_second,
        "targets": [{**verdict._asdict(), "met": verdict.met} for verdict in found],
        "slopes": {peer: slope(rows, peer) for peer in ("softmax", "infsa", "linear_infsa")},
        "rows": [asdict(row) for row in rows],
    }
    (folder / "infsa.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "infsa.md").write_text(text, encoding="utf-8")
    _draw(folder / "infsa.png", rows, about)
    return text


def _markdown(rows: list[Row], found: list[Verdict], about: dict[str, Any], rate: float | None) -> str:
    copy = "" if rate is None else f" Copy of 2 GiB on the device: {rate / 1e12:.2f} TB/s."
    lines = [
        "# InfSA over the number of tokens",
        "",
        f"{about['device']}, torch {about['packages']['torch']}, triton {about['packages']['triton']}, commit "
        f"{about['commit']}, {about['date']}: `{about['command']}`.{copy}",
        "",
        f'Operations: bfloat16, `[1, N, {HEADS}, {WIDTH}]`; "{ROW}" is the operation whose result is the one row that '
        f'all targets read, "{LINEAR}" spreads it and takes a gradient for each target. Networks: one image, patches '
        "of 16, width 1024, 16 heads, 4 layers; softmax is `attend`, that is SDPA, cuDNN first. Median [quartiles] ms; "
        "memory above what was there before.",
        "",
        "| target | goal | measured | |",
        "|---|---|---:|---|",
        *map(str, found),
        "",
    ]
    for peer in ("softmax", "infsa", "linear_infsa"):
        line = slope(rows, peer)
        if line is not None:
            lines.append(f"Slope of log time over log tokens from {_FROM:,} on, {peer}: {line:.2f}.  ")
    lines += ["", "| workload | attention | pass | ms | MB | error | |", "|---|---|---|---:|---:|---:|---|"]
    for row in rows:
        time = "" if row.ms is None else f"{row.ms:.4g} [{row.ms_low:.4g}, {row.ms_high:.4g}]"
        memory = "" if row.peak_mb is None else f"{row.peak_mb:,.1f}"
        error = "" if row.error is None else f"{row.error:.1e}"
        status = row.text if row.status == "ok" else f"{row.status}: {row.text}"
        lines.append(f"| {row.workload} | {row.peer} | {row.what} | {time} | {memory} | {error} | {status} |")
    return "\n".join(lines) + "\n"


def _draw(path: Path, rows: list[Row], about: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("operation", "forward", "ms"),
        ("operation", "forward+backward", "ms"),
        ("operation", "forward+backward", "peak_mb"),
        ("network", "forward", "ms"),
        ("network", "training step", "ms"),
        ("network", "forward", "peak_mb"),
    )
    for axes, (kind, what, column) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        mine = [row for row in rows if row.workload.startswith(kind) and row.what == what and getattr(row, column)]
        for peer in dict.fromkeys(row.peer for row in mine):
            line = [(int(row.workload.split()[1]), getattr(row, column)) for row in mine if row.peer == peer]
            axes.plot(*zip(*line, strict=True), marker="o", label=peer)
        axes.set_title(f"{kind}: {what}", fontsize="medium")
        axes.set_xlabel("tokens")
        axes.set_ylabel("ms, with launches" if column == "ms" else "MB above what was there")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if mine:
            axes.legend(fontsize="small")
    figure.suptitle(
        f"{about['device']}, torch {about['packages']['torch']}, commit {about['commit']}", fontsize="small"
    )
    figure.savefig(path, dpi=150)


def _quotient(over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else over / under


def _tokens(rows: list[Row], kind: str) -> list[int]:
    return list(dict.fromkeys(int(row.workload.split()[1]) for row in rows if row.workload.startswith(kind)))
