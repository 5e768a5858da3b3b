"""What a section is told, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.benchmarks.measure import Effort, Timing
from experiments.benchmarks.workloads import Size

__all__ = ["Options", "Row"]


@dataclass
class Row:
    """One line of the table."""

    section: str
    workload: str
    peer: str
    what: str
    """``forward``, ``forward+backward``, the same with ``(graph)``, ``set-up``, or ``*`` where all are concerned."""
    status: str = "ok"
    """``ok``, ``missing``, ``unsupported``, ``wrong``, ``failed``, ``out of memory`` or ``time limit``."""
    text: str = ""
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    repetitions: int | None = None
    peak_mb: float | None = None
    error: float | None = None

    def with_time(self, timing: Timing) -> Row:
        """The row, its times filled in."""
        self.ms, self.ms_low, self.ms_high, self.repetitions = timing
        return self


@dataclass
class Options:
    """How to run a section."""

    device: str = "cuda"
    seed: int = 0
    size: Size = "full"
    effort: Effort = Effort()
    limit: float = 60.0
    """Seconds that one workload with one peer may take."""
