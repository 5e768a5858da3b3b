"""What a result must equal: plain torch in high precision, a part at a time so that any workload fits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.workloads import SLOPE, Workload

__all__ = ["Truth", "edge_scores", "relative_error", "segment_attention", "truth_of"]

_ELEMENTS = 1 << 28  # of the largest tensor of a part

Truth = dict[str, Tensor]
"""The output under ``"out"``, and the gradient of each input under its name."""

_Part = tuple[Any, Callable[[dict[str, Tensor]], Tensor]]


def truth_of(work: Workload) -> Truth:
    """Output and gradients in float64 on the CPU, in float32 on a GPU (whose float64 is slow)."""
    dtype = torch.float64 if work.q.device.type == "cpu" else torch.float32
    leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in work.inputs.items()}
    grad = work.grad.to(dtype)
    found = {name: torch.zeros_like(x) for name, x in leaves.items()}
    out = torch.empty_like(grad)
    for place, call in _by_head(work) if work.graph.is_dense else _by_target(work):
        part = call(leaves)
        out[place] = part.detach()
        for name, g in zip(leaves, torch.autograd.grad(part, list(leaves.values()), grad[place]), strict=True):
            found[name] += g
    return {"out": out, **found}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 error; infinite where shapes differ or the result is not finite."""
    if found.shape != wanted.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    wanted = wanted.detach()
    difference = torch.linalg.vector_norm(found.detach().to(wanted.dtype) - wanted)
    return float(difference / torch.linalg.vector_norm(wanted).clamp(min=1e-30))


def edge_scores(
    work: Workload, at_target: Tensor, at_source: Tensor, gate: Tensor | None, att: Tensor | None
) -> Tensor:
    """``[..., E, H]`` from rows at both ends of each edge, ``[..., E, H, D]``."""
    if work.score == "dot":
        product = at_target * at_source
        return (product if gate is None else product * gate).sum(-1) * work.scale
    total = F.leaky_relu(at_target + at_source, SLOPE)
    return total.squeeze(-1) if att is None else (total * att).sum(-1)


def segment_attention(scores: Tensor, values: Tensor, target: Tensor, num_targets: int) -> Tensor:
    """Softmax of ``scores [..., E, H]`` over the edges of each target, and the sum of ``values [..., E, H, D]``."""
    axis = scores.dim() - 2
    shape = (*scores.shape[:axis], num_targets, scores.shape[-1])
    where = target.view(-1, 1).expand(scores.shape)
    top = scores.new_full(shape, -torch.inf).scatter_reduce(axis, where, scores.detach(), "amax")
    weights = (scores - top.index_select(axis, target)).exp()
    total = scores.new_zeros(shape).index_add(axis, target, weights)
    weights = weights / total.index_select(axis, target)
    return values.new_zeros(*shape, values.shape[-1]).index_add(axis, target, weights.unsqueeze(-1) * values)


def _by_target(work: Workload) -> Iterator[_Part]:
    """Runs of targets with their edges, which are sorted by target."""
    edges, rowptr, n = work.graph.edges, work.graph.rowptr.tolist(), work.graph.num_tokens
    axis = work.q.dim() - 3
    most = max(1, _ELEMENTS // (work.grad.numel() // n))
    begin = 0
    while begin < n:
        end = min(max(bisect_right(rowptr, rowptr[begin] + most) - 1, begin + 1), n)
        first, last = rowptr[begin], rowptr[end]

        def call(
            x: dict[str, Tensor], begin: int = begin, end: int = end, first: int = first, last: int = last
        ) -> Tensor:
            source, target = edges[0, first:last], edges[1, first:last]
            gate = x["edge_gate"][first:last] if "edge_gate" in x else None
            at_target, at_source = x["q"].index_select(axis, target), x["k"].index_select(axis, source)
            scores = edge_scores(work, at_target, at_source, gate, x.get("att"))
            values = at_source if work.score == "gatv2" else x["v"].index_select(axis, source)
            return segment_attention(scores, values, target - begin, end - begin)

        yield (..., slice(begin, end), slice(None), slice(None)), call
        begin = end


def _by_head(work: Workload) -> Iterator[_Part]:
    """One head after another, dense."""
    mask = work.graph.dense
    for head in range(work.q.shape[-2]):

        def call(x: dict[str, Tensor], head: int = head) -> Tensor:
            q, k, v = (x[name][..., head, :] for name in ("q", "k", "v"))
            scores = (q @ k.transpose(-1, -2)) * work.scale
            allowed = mask if mask.dim() == 2 else mask[:, head]
            return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v

        yield (..., head, slice(None)), call
