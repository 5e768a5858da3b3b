"""One run for each seed, some at a time, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from graphattn.training.leaderboard.plan import Plan
from graphattn.training.parent import FOLLOWS_PARENT, GRACE

__all__ = ["Display", "SeedRun", "run_seeds"]

_POLL = 0.2  # seconds


@dataclass
class SeedRun:
    """One seed and what has become of it.

    Args:
        seed: The seed.
        folder: Its run folder; its output goes to ``log.txt`` in there.
        state: ``"waiting"``, ``"running"``, ``"finished"`` or ``"failed"``.
        slot: Which of the plan's slots it runs in.
        seconds: How long this session of it took.
        error: Why it failed.
    """

    seed: int
    folder: Path
    state: Literal["waiting", "running", "finished", "failed"] = "waiting"
    slot: int = 0
    seconds: float = 0.0
    error: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    started: float = 0.0
    _log_start: int = 0

    @property
    def log(self) -> Path:
        """The file that holds its output, of all sessions."""
        return self.folder / "log.txt"

    def start(self, command: list[str], environment: dict[str, str], slot: int) -> None:
        """Start the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            log.write(f"\n$ {shlex.join(command)}\n".encode())
            log.flush()
            self._log_start = log.tell()
            # In our own process group: a Ctrl-C at the terminal, or a kill of the group, reaches it too.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self.state, self.slot, self.started = "running", slot, time.monotonic()

    def poll(self) -> bool:
        """Look whether the process has ended; true if it has just now."""
        if self.process is None or (code := self.process.poll()) is None:
            return False
        self.process, self.seconds = None, time.monotonic() - self.started
        self.state = "finished" if code == 0 else "failed"
        self.error = "" if code == 0 else self._reason(code)
        return True

    def _reason(self, code: int) -> str:
        """The last line that this session wrote, or the signal that ended it."""
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (was memory short?)" if name == "SIGKILL" else "")
        with open(self.log, "rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        told = [line.partition("error: ")[2] for line in lines if line.startswith("graphattn: error: ")]
        return told[-1] if told else lines[-1].strip() if lines else f"exit code {code}"


class Display(Protocol):
    """Shows how the runs go."""

    def show(self, runs: list[SeedRun]) -> None:
        """Called every moment."""

    def tell(self, run: SeedRun) -> None:
        """Called when a run has started or ended."""


def run_seeds(plan: Plan, display: Display) -> list[SeedRun]:
    """Run what is not finished yet.

    Args:
        plan: The configuration and the seeds.
        display: Is told how it goes.

    Returns:
        A run for each seed, finished or failed.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the runs have stopped.
    """
    runs = [SeedRun(seed, plan.run_folder(seed)) for seed in plan.seeds]
    for run in runs:
        if plan.finished(run.seed):
            run.state = "finished"
            display.tell(run)
    with _sigterm_interrupts():
        try:
            while any(run.state in ("waiting", "running") for run in runs):
                for run in runs:
                    if run.poll():
                        display.tell(run)
                _fill_slots(plan, runs, display)
                display.show(runs)
                time.sleep(_POLL)
        except BaseException:
            _stop([run.process for run in runs if run.process is not None])
            raise
    return runs


def _fill_slots(plan: Plan, runs: list[SeedRun], display: Display) -> None:
    taken = {run.slot for run in runs if run.state == "running"}
    free = [slot for slot in range(len(plan.slots)) if slot not in taken]
    waiting = [run for run in runs if run.state == "waiting"]
    for slot, run in zip(free, waiting, strict=False):
        run.start(_command(plan, run.seed), _environment(plan.slots, slot), slot)
        display.tell(run)


def _command(plan: Plan, seed: int) -> list[str]:
    arguments = ["--config", str(plan.folder / "config.yaml"), f"--seed_everything={seed}"]
    return [sys.executable, "-m", "graphattn.cli", "fit", *arguments]


def _environment(slots: list[tuple[str, ...]], slot: int) -> dict[str, str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", FOLLOWS_PARENT: "1"}
    if slots[slot]:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slots[slot])
    if len(slots) > 1 and "OMP_NUM_THREADS" not in environment:  # else each would take all cores
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(slots)))
    return environment


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End processes: first as Ctrl-C does, so that they clean up, then with more force."""
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave them behind
    try:
        # The terminal's Ctrl-C has reached them already, and a second one would disturb their cleaning up.
        _wait(processes, 0.5)
        for number, seconds in GRACE.items():
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)
            _wait(processes, seconds)
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)


def _wait(processes: list[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(0.05)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send, like Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
