"""Commands side by side, spread over the GPUs that are visible."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Job", "run_each", "run_jobs", "visible_gpus"]

_POLL = 0.2  # seconds


class Job(NamedTuple):
    """A command, and the file that what it prints is added to."""

    name: str
    command: list[str]
    log: Path


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them; empty on a CPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    import torch

    return [str(n) for n in range(torch.cuda.device_count())]


def run_jobs(jobs: Sequence[Job], parallel: int) -> list[Job]:
    """Run all, ``parallel`` at a time, the first ones first, each on the GPU that has the fewest.

    Returns:
        Those that failed; their logs say why.
    """
    gpus = visible_gpus()
    threads = max(1, (os.cpu_count() or 1) // max(1, min(parallel, len(jobs))))
    waiting, failed = list(jobs), []
    running: dict[subprocess.Popen[bytes], tuple[Job, str | None, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                taken = [gpu for _, gpu, _ in running.values()]
                gpu = min(gpus, key=taken.count) if gpus else None
                job = waiting.pop(0)
                running[_start(job, gpu, threads)] = job, gpu, time.monotonic()
            for process in [process for process in running if process.poll() is not None]:
                job, _, begin = running.pop(process)
                if process.returncode != 0:
                    failed.append(job)
                word = "done" if process.returncode == 0 else f"FAILED ({_last_line(job.log)})"
                left = len(waiting) + len(running)
                print(f"== {job.name}: {word} after {time.monotonic() - begin:.0f} s, {left} left", flush=True)
            time.sleep(_POLL)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def run_each(jobs: Sequence[tuple[Job, list[str]]], parallel: int, here: Callable[[list[str]], Any]) -> list[str]:
    """Side by side, or, ``parallel`` being 1, one after another in this process, where an error ends all.

    Args:
        jobs: Each with the arguments that it has in this process.
        parallel: How many at a time.
        here: What does one in this process.

    Returns:
        Names of those that failed.
    """
    if parallel > 1:
        return [job.name for job in run_jobs([job for job, _ in jobs], parallel)]
    for number, (job, arguments) in enumerate(jobs, start=1):
        print(f"== {job.name} ({number} of {len(jobs)})", flush=True)
        here(arguments)
    return []


def _start(job: Job, gpu: str | None, threads: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        log.write(f"\n$ {shlex.join(job.command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line for line in lines if "error: " in line]
    return f"{(told or lines or ['it printed nothing'])[-1].strip()[:300]}; see {log}"
