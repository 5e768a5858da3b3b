"""The ratios that this library promises, computed from the rows of one run."""

from __future__ import annotations

from typing import Any, NamedTuple

from experiments.benchmarks.row import Row

__all__ = ["DEVICE", "TARGETS", "Result", "Target", "results", "slower_than"]

DEVICE = "H200"
"""What all targets but the CPU's are for."""

F, B = "forward", "forward+backward"
FG, BG = f"{F} (graph)", f"{B} (graph)"  # replays of a CUDA graph


class Target(NamedTuple):
    """One ratio: ``factor * time of a peer / time of ours``, or another quotient of two rows."""

    number: int
    """0: the CPU's, which have none."""
    text: str
    workload: str
    over: tuple[str, ...]
    """Peers above the line: the fastest of them counts."""
    what: str
    goal: float
    stretch: float
    factor: float = 1.0
    under: str = "ours"
    column: str = "ms"
    over_workload: str | None = None
    over_what: str | None = None
    at_most: bool = False
    """Whether the ratio must stay below its goal."""


class Result(NamedTuple):
    """A target and what was measured; ``None`` where a row is missing."""

    target: Target
    value: float | None
    why: str
    judged: bool = True
    """Whether it was measured on the device that the target is for."""

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached."""
        if self.value is None or not self.judged:
            return None
        return self.value <= self.target.goal if self.target.at_most else self.value >= self.target.goal


def _ratio(
    number: int, workload: str, over: tuple[str, ...], what: str, goal: float, stretch: float, **more: Any
) -> Target:
    return Target(number, more.pop("text", f"{over[0]} / ours"), workload, over, what, goal, stretch, **more)


_PYG, _ROOF, _TORCH, _FLEX = ("PyG",), ("gather roof",), ("torch",), ("FlexAttention",)
_SDPA = ("SDPA cuDNN", "SDPA flash", "SDPA efficient")
_ROOFS = (
    ("W1 d16 fp16", 0.65, 0.88, 0.58, 0.77),
    ("W1 d64 fp16", 0.75, 0.92, 0.58, 0.78),
    ("W3 62M fp16", 0.95, 0.99, 0.83, 0.95),
)
_LEAST = {
    "text": "memory of ours / (output + LSE + delta + gradients)",
    "under": "least",
    "column": "peak_mb",
    "at_most": True,
}

TARGETS: tuple[Target, ...] = (
    _ratio(1, "W1 d16 fp16", _PYG, F, 45, 65),
    _ratio(2, "W1 d64 fp16", _PYG, F, 28, 36),
    _ratio(3, "W1 d16 fp16", _PYG, B, 30, 42),
    _ratio(4, "W1 d64 fp16", _PYG, B, 22, 30),
    _ratio(5, "W1 d64 fp16", ("turbo-gnn",), F, 3.5, 4.5),
    _ratio(5, "W1 d64 fp16", ("turbo-gnn",), B, 3, 4.1),
    _ratio(6, "W1 d16 fp32", _PYG, B, 16, 20),
    _ratio(6, "W1 d64 fp32", _PYG, B, 11, 13),
    *(_ratio(7, name, _ROOF, F, goal, most) for name, goal, most, _, _ in _ROOFS),
    *(
        _ratio(8, name, _ROOF, B, goal, most, text="3 x gather roof / ours", factor=3.0, over_what=F)
        for name, _, _, goal, most in _ROOFS
    ),
    _ratio(9, "W3 62M fp16", _PYG, F, 36, 38.5),
    _ratio(9, "W3 62M fp16", _PYG, B, 30, 35),
    _ratio(10, "W3 62M fp16", ("ours",), B, 1.05, 1.0, **_LEAST),
    _ratio(10, "W3 124M fp16", ("ours",), B, 1.05, 1.0, **_LEAST),
    _ratio(11, "W2 d16 fp16", _PYG, B, 10, 22),
    _ratio(12, "W2 d16 fp16", _TORCH, BG, 13, 25),
    _ratio(13, "W2 d8 fp16 edges", _TORCH, BG, 10, 18),
    _ratio(14, "W4 64k window", _FLEX, F, 4, 7),
    _ratio(14, "W4 64k window", _FLEX, B, 2.5, 5),
    _ratio(15, "W4 64k causal", _FLEX, F, 1, 1.3),
    _ratio(15, "W4 64k causal", _FLEX, B, 2.2, 3.5),
    _ratio(16, "W4 image grid", _FLEX, F, 1.45, 3),
    _ratio(16, "W4 image grid", _FLEX, B, 1.25, 2.4),
    _ratio(17, "W5 25%", ("SDPA mask",), FG, 3.5, 6.5),
    _ratio(17, "W5 25%", ("SDPA mask",), B, 2.2, 3.8),
    _ratio(17, "W5 25%", ("SDPA mask",), BG, 2.2, 3.8),
    *(
        _ratio(18, name, _SDPA, what, 0.97, stretch, text="fastest SDPA / ours")
        for name in ("W6 4k", "W6 8k", "W6 16k")
        for what, stretch in ((F, 1.0), (B, 1.15))
    ),
    # Eager, these are the host's time; a CUDA graph has the device's.
    *(_ratio(18, "W6 4k", _SDPA, what, 0.97, 1.0, text="fastest SDPA / ours") for what in (FG, BG)),
    _ratio(19, "W1 GAT d16 fp16", _PYG, F, 50, 75),
    _ratio(19, "W1 GAT d64 fp16", _PYG, F, 30, 40),
    _ratio(20, "W1 GATv2 d16 fp16", _PYG, B, 25, 38),
    _ratio(20, "W1 GATv2 d64 fp16", _PYG, B, 20, 28),
    *(
        _ratio(
            21,
            f"W1 equal degrees {width} fp16",
            ("ours",),
            F,
            1.15,
            1.05,
            text="ours, W1 / equal degrees",
            over_workload=f"W1 {width} fp16",
            at_most=True,
        )
        for width in ("d16", "d64")
    ),
    _ratio(22, "W1 d16 fp16", ("ours",), B, 5, 2, text="set-up / one call", over_what="set-up", at_most=True),
    _ratio(0, "W1-small d16 fp32", _PYG, F, 15, 17),
    _ratio(0, "W1-small d16 fp32", _PYG, B, 12, 15),
    _ratio(0, "W1-small d16 fp32", _PYG, F, 10, 10, text="PyG / ours, peak memory", column="peak_mb"),
    _ratio(0, "W1-small d16 fp32", _PYG, B, 10, 10, text="PyG / ours, peak memory", column="peak_mb"),
)


def results(rows: list[Row], facts: dict[str, dict[str, float]], device: str) -> list[Result]:
    """Every target whose workload was run; judged where the device (its name) is the one that it is for."""
    ran = {row.workload for row in rows}
    found = [_result(target, rows, facts) for target in TARGETS if target.workload in ran]
    return [result._replace(judged=not result.target.number or DEVICE in device) for result in found]


def _result(target: Target, rows: list[Row], facts: dict[str, dict[str, float]]) -> Result:
    over_key = (target.over_workload or target.workload, target.over_what or target.what)
    over = [_find(rows, over_key[0], peer, over_key[1], target.column) for peer in target.over]
    known = [value for value, _ in over if value is not None]
    if not known:
        return Result(target, None, "; ".join(why for _, why in over))
    if target.under == "least":
        under, why = facts.get(target.workload, {}).get("least_mb"), "no facts"
    else:
        under, why = _find(rows, target.workload, target.under, target.what, target.column)
    if under is None:
        return Result(target, None, why)
    return Result(target, target.factor * min(known) / under, "")


def _find(rows: list[Row], workload: str, peer: str, what: str, column: str) -> tuple[float | None, str]:
    for row in rows:
        if row.workload == workload and row.peer == peer and row.what in (what, "*"):
            value = getattr(row, column)
            if value is not None:
                return value, ""
            return None, f"{peer}: {'not measured' if row.status == 'ok' else row.status}"
    return None, f"{peer}: not run"


def slower_than(rows: list[Row], margin: float = 1.03) -> list[tuple[Row, Row]]:
    """Every pair (ours, a peer's row of the same workload and pass) where ours takes more than ``margin`` times as
    long; the roof is no peer."""
    found = []
    for mine in rows:
        if mine.peer != "ours" or mine.ms is None:
            continue
        for row in rows:
            same = (row.workload, row.what) == (mine.workload, mine.what)
            other = not row.peer.startswith("ours") and row.peer != "gather roof"
            if same and other and row.ms is not None and mine.ms > margin * row.ms:
                found.append((mine, row))
    return found
