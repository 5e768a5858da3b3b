"""How a call is checked and timed: correctness first, then memory, then the time of many calls."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.benchmarks.peers import Call
from experiments.benchmarks.reference import Truth, relative_error
from experiments.benchmarks.workloads import Workload

__all__ = [
    "TOLERANCE",
    "Effort",
    "Run",
    "Timing",
    "check",
    "passes",
    "peak_mb",
    "replayed",
    "summary",
    "time_limit",
    "timed",
]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-4, torch.float16: 2e-2, torch.bfloat16: 3e-2}
"""Largest relative L2 error of a result that is worth a time (float32 leaves room for tf32)."""


class Effort(NamedTuple):
    """How much time one measurement may take."""

    seconds: float = 0.4
    """Stop repeating after this long, ..."""
    least: int = 7
    """... but not before so many repetitions, ..."""
    most: int = 100
    """... and in any case after so many."""
    warm_ups: int = 3
    """Calls ahead of all timing, at least one."""


class Timing(NamedTuple):
    """Milliseconds of one call."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    repetitions: int


Run = Callable[[], tuple[Tensor, ...]]
"""One pass; returns its results."""


def passes(work: Workload, call: Call, *, backward: bool) -> dict[str, Run]:
    """What is timed: the forward pass, and forward with the gradients of every input."""
    inputs = list(work.inputs.values())

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (call(),)

    def both() -> tuple[Tensor, ...]:
        out = call()
        return (out, *torch.autograd.grad(out, inputs, work.grad))

    return {"forward": forward, "forward+backward": both} if backward else {"forward": forward}


def check(work: Workload, run: Run, truth: Truth) -> float:
    """The worst relative L2 error of the output and, after a backward pass, of every gradient."""
    names = ["out", *work.inputs]
    results = [x.detach() for x in run()]
    return max(relative_error(x, truth[name]) for x, name in zip(results, names, strict=False))


def peak_mb(run: Callable[[], Any]) -> float | None:
    """MB that one call takes above what is allocated before it; ``None`` on the CPU, where see :mod:`.cpu`."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak / 2**20


def timed(run: Callable[[], Any], effort: Effort) -> Timing:
    """Median and quartiles; each repetition stands between its own pair of events on the device."""
    for _ in range(max(1, effort.warm_ups)):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        once = max(time.perf_counter() - begin, 1e-6)
        if once > effort.seconds:
            break  # so long a call has nothing left to warm
    count = int(min(max(effort.seconds / once, effort.least), effort.most))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for first, last in events:
        first.record()
        run()
        last.record()
    torch.cuda.synchronize()
    return summary([first.elapsed_time(last) for first, last in events])


def replayed(run: Callable[[], Any], effort: Effort, calls: int = 1) -> Timing:
    """The time of replays of a CUDA graph that holds the call: what is left when launches cost nothing.

    Args:
        run: The call.
        effort: How long to repeat it.
        calls: Calls in a row in the graph, as a step of a network with so many layers has them; the time is that of
            one. A graph of one empty kernel takes some 10 us, which all count as the time of a single call.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(effort.warm_ups):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            result = run()
    timing = timed(graph.replay, effort)
    del graph, result
    return timing._replace(median=timing.median / calls, low=timing.low / calls, high=timing.high / calls)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeoutError` inside the block after so many seconds (Python code only: a kernel that hangs is
    ended with its process)."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def summary(times: list[float]) -> Timing:
    """Median and quartiles of milliseconds."""
    low, high = (times[0], times[0]) if len(times) == 1 else statistics.quantiles(times, n=4)[::2]
    return Timing(statistics.median(times), low, high, len(times))
