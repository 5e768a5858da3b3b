"""A job checked beside dense attention, and timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.lists.jobs import CUDA, Job
from experiments.benchmarks.measure import TOLERANCE, Effort, peak_mb, replayed, timed
from graphattn import TokenGraph, attend
from graphattn.graph.bits import BitGraph
from graphattn_kernels.bits import unpack
from graphattn_kernels.lists import to_mask

__all__ = ["MODES", "Row", "error", "measured"]

MODES = {"eager": timed, "graph": replayed, "graph of 8": partial(replayed, calls=8)}


@dataclass
class Row:
    """One measurement; milliseconds."""

    section: str
    case: str
    peer: str
    what: str
    mode: str
    median: float | None = None
    low: float | None = None
    high: float | None = None
    repetitions: int = 0
    peak_mb: float | None = None
    error: float | None = None
    text: str = ""


def error(job: Job) -> float | None:
    """The worst relative error of output and gradients, of the graph that the job was made with, beside dense attention
    with a mask in float32, one head after another."""
    graph = job.graph
    if graph is None:
        return None
    grad = torch.randn_like(job.inputs[0])
    out = attend(graph, *job.inputs, backend=job.backend)
    ours = [out, *torch.autograd.grad(out, job.inputs, grad)]  # type: ignore[arg-type]
    wrong = [0.0] * 4
    norm = [0.0] * 4
    batch, _, heads, _ = job.inputs[0].shape
    for b in range(min(batch, 4)):
        for h in range(min(heads, 4)):
            x = [y.detach()[b, :, h].float().requires_grad_() for y in job.inputs]
            mask = _mask(graph, b, h)
            scores = (x[0] @ x[1].T * x[0].shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
            y = scores.softmax(-1) @ x[2]
            theirs = [y, *torch.autograd.grad(y, x, grad[b, :, h].float())]
            for i, (mine, true) in enumerate(zip(ours, theirs, strict=True)):
                wrong[i] += float((mine[b, :, h].detach().float() - true.detach()).square().sum())
                norm[i] += float(true.detach().square().sum())
    return max((a / max(n, 1e-30)) ** 0.5 for a, n in zip(wrong, norm, strict=True))


def _mask(graph: TokenGraph, b: int, h: int) -> Tensor:
    """bool ``[T, S]`` of one copy."""
    axes, heads = graph.leading_axes, graph.leading[-1] if graph.leading_axes.endswith("h") else 1
    copy = (b if axes.startswith("b") else 0) * heads + (h if axes.endswith("h") else 0)
    if isinstance(graph, BitGraph):
        return unpack(graph.flat_words[copy], graph.num_sources)
    lists = graph.lists  # type: ignore[attr-defined]
    one = slice(copy, copy + 1)
    target = lists.target if lists.target is None or lists.target.shape[0] == 1 else lists.target[one]
    length = None if lists.length is None else lists.length[one]
    return to_mask(lists._replace(index=lists.index[one], length=length, target=target))[0]


def measured(job: Job, effort: Effort) -> Iterator[Row]:
    """Its rows."""
    wrong = error(job)
    dtype = job.inputs[0].dtype
    if wrong is not None and not wrong < TOLERANCE[dtype]:
        yield Row(job.section, job.case, job.peer, "*", "failed", error=wrong, text="wrong values")
        return
    if not CUDA:
        yield Row(job.section, job.case, job.peer, "*", "checked", error=wrong)
        return
    grad = torch.randn_like(job.inputs[0])

    def forward() -> Any:
        with torch.no_grad():
            return job.step(job.inputs)

    def both() -> Any:
        out = job.step(job.inputs)
        return (out, *torch.autograd.grad(out, job.inputs, grad))

    for what, run in (("forward", forward), ("forward+backward", both)):
        if what == "forward+backward" and not job.backward:
            continue
        peak = peak_mb(run)
        for mode, timer in MODES.items():
            try:
                times = timer(run, effort)
            except Exception as failure:  # the others are still worth having
                text = f"{type(failure).__name__}: {failure}"[:200]
                yield Row(job.section, job.case, job.peer, what, mode, text=text)
                torch.cuda.synchronize()
                continue
            yield Row(job.section, job.case, job.peer, what, mode, *times, peak, wrong)
