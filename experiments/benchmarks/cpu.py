"""On the CPU: peers take turns, so that a busy machine slows all of them, and memory is measured in a fresh process.

Peak memory is the high-water mark of the resident set during one call, less what was resident before it. The mark is
set back just before (``/proc/self/clear_refs``, Linux); by then the process has made the inputs and run once on a tiny
problem, which loads every library and compiles every loop, and has handed freed memory back.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.benchmarks import measure, peers
from experiments.benchmarks.row import Options, Row
from experiments.benchmarks.workloads import SPECS

__all__ = ["THREADS", "Turn", "peak_in_child", "resident_peak", "take_turns"]

THREADS = 2


class Turn(NamedTuple):
    """A row that has no time yet, and its call."""

    row: Row
    run: Callable[[], Any]


def take_turns(turns: list[Turn], options: Options) -> Iterator[Row]:
    """The rows with their times: medians of rounds in which every call has one turn."""
    torch.set_num_threads(THREADS)
    times: list[list[float]] = [[] for _ in turns]
    for turn in turns:
        turn.run()
    begin, rounds = time.perf_counter(), 0
    while turns and rounds < options.effort.most:
        if rounds >= options.effort.least and time.perf_counter() - begin > options.effort.seconds * len(turns):
            break
        for turn, found in zip(turns, times, strict=True):
            started = time.perf_counter()
            turn.run()
            found.append((time.perf_counter() - started) * 1e3)
        rounds += 1
    for turn, found in zip(turns, times, strict=True):
        if options.size == "full":
            turn.row.peak_mb = peak_in_child(turn.row, options)
        yield turn.row.with_time(measure.summary(found))


def peak_in_child(row: Row, options: Options) -> float | None:
    """MB that one call takes above its inputs; ``None`` where the system does not tell."""
    what = [row.workload, row.peer, row.what, options.size, str(options.seed)]
    command = [sys.executable, "-m", "experiments.benchmarks.cpu", *what]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    try:
        return float(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        print(done.stderr[-1000:], file=sys.stderr)
        return None


def resident_peak(run: Callable[[], Any]) -> float:
    """Peak of the resident set during one call, less what was resident before, in MB (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _main() -> None:
    parser = argparse.ArgumentParser(description="Print the peak memory of one call in MB.")
    for name in ("workload", "peer", "what", "size", "seed"):
        parser.add_argument(name)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    spec = next(spec for spec in SPECS if spec.name == options.workload)
    peer = next(peer for peer in peers.find(None) if peer.name == options.peer)

    def make(size: Any) -> Callable[[], Any]:
        work = spec.make(torch.device("cpu"), int(options.seed), size)
        return measure.passes(work, peer.build(work), backward=peer.backward)[options.what]

    make("tiny")()
    run = make(options.size)
    print(resident_peak(run))


if __name__ == "__main__":
    _main()
