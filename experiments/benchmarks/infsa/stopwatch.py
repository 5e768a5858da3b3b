"""One row after another: checked, its memory, its time; what takes too long or does not fit says so in its row."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.files import write_csv
from experiments.benchmarks.measure import Effort, Timing, peak_mb, replayed, summary, time_limit, timed
from experiments.benchmarks.row import Row

__all__ = ["Stopwatch"]

_LONG = 1000.0  # ms of a call that is not repeated
_HOST = 50.0  # ms of a call above which the launches are nothing, so that a CUDA graph has nothing to say


class Stopwatch:
    """Rows of one run, in ``folder / "rows.csv"`` after each of them.

    Args:
        folder: Where rows go.
        device: CUDA, or a CPU to try it out.
        effort: How much time a measurement may take.
        limit: Seconds for all that one row needs. A call that is expected to take a fifth of it is not begun.
    """

    def __init__(self, folder: Path, device: torch.device, effort: Effort, limit: float) -> None:
        self.folder, self.device, self.effort, self.limit = folder, device, effort, limit
        self.rows: list[Row] = []

    def measure(
        self,
        workload: str,
        peer: str,
        what: str,
        run: Callable[[], Any],
        *,
        check: Callable[[Any], float] | None = None,
        tolerance: float = 0.0,
        capture: bool = True,
        expected: float | None = None,
        text: str = "",
    ) -> Row:
        """Measure one pass.

        Args:
            workload: First part of the row's name, and...
            peer: ...second and...
            what: ...third.
            run: The pass.
            check: The error of what it returns.
            tolerance: An error above it: no time.
            capture: Also time the replay of a CUDA graph, in a row of its own.
            expected: Seconds that a call is expected to take, where smaller calls are known.
            text: Goes into the row.

        Returns:
            The row of the pass itself.
        """
        row = Row("InfSA", workload, peer, what, text=text)
        if expected is not None and expected > self.limit / 5:
            row.status, row.text = "time limit", f"about {expected:.0f} s are expected"
            return self._add(row)
        try:
            with time_limit(self.limit):
                if check is not None:
                    row.error = check(run())
                    if not row.error <= tolerance:
                        row.status, row.text = "wrong", f"relative error {row.error:.1e}, at most {tolerance:g}"
                        return self._add(row)
                else:
                    run()  # compiles what has to be compiled
                once = self._once(run, row)
                self._add(row.with_time(self._repeated(run, once)))
                if capture and self.device.type == "cuda" and row.ms is not None and row.ms < _HOST:
                    graph = Row("InfSA", workload, peer, f"{what} (graph)", text=text, error=row.error)
                    self._add(graph.with_time(replayed(run, self.effort)))
        except Exception as error:
            failed = row if row.ms is None else Row("InfSA", workload, peer, f"{what} (graph)")
            failed.status = {torch.OutOfMemoryError: "out of memory", TimeoutError: "time limit"}.get(
                type(error), "failed"
            )
            failed.text = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
            self._add(failed)
        finally:
            self.forget()
        return row

    def forget(self) -> None:
        """Give memory back to the device."""
        if self.device.type == "cuda":
            gc.collect()
            with suppress(RuntimeError):  # after an error on the device every call raises; the next row says so
                torch.cuda.synchronize()
                torch.cuda.empty_cache()

    def _once(self, run: Callable[[], Any], row: Row) -> float:
        """Milliseconds of a call that also says how much memory it takes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        row.peak_mb = peak_mb(run)
        return (time.perf_counter() - begin) * 1e3

    def _repeated(self, run: Callable[[], Any], once: float) -> Timing:
        if once > _LONG:
            return Timing(once, once, once, 1)
        if self.device.type == "cuda":
            return timed(run, self.effort)
        times = []
        for _ in range(self.effort.least):
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) * 1e3)
        return summary(times)

    def _add(self, row: Row) -> Row:
        self.rows.append(row)
        took = f"{row.ms:12.4f} ms" if row.ms is not None else f"{row.status}: {row.text}"
        memory = f"{row.peak_mb:10,.1f} MB" if row.peak_mb is not None else ""
        print(f"{row.workload:22s} {row.peer:22s} {row.what:26s} {took} {memory}", flush=True)
        write_csv(self.folder / "rows.csv", Row, self.rows)
        return row
