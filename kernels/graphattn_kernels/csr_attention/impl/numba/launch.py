"""From tensors to the compiled loops and back: conversions, hubs, and the threads that share the rows.

Plain threads instead of Numba's parallel loops: its OpenMP layer does not survive a fork (data loader workers) and its
own layer ends the process when two threads call at once. The loops release the interpreter's lock.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels.csr_attention.impl.numba import kernels
from graphattn_kernels.structure import Structure, View

__all__ = ["backward", "forward"]

# Edges. Longer rows (hubs) are cut, always at the same places: one row does not keep all threads but one waiting, and
# a sum of sums rounds less than one long sum.
_LONGEST = 1024
_SERIAL = 1 << 19  # edges times channels below which waking a thread costs more than it gives
_PIECES = 8  # for each thread: whoever is done first takes the next

_MASK = 0xFFFFFFFF

Array = np.ndarray[Any, Any]


# --- threads --------------------------------------------------------------------------------------------------

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not follow into the child


def _share(function: Callable[[int, int], None], cuts: list[int], threads: int) -> None:
    """Call ``function`` on the ranges between neighbouring ``cuts``, on this thread and ``threads - 1`` helpers."""
    global _pool
    ranges = deque(zip(cuts[:-1], cuts[1:], strict=True))

    def work() -> None:
        while True:
            try:
                first, last = ranges.popleft()
            except IndexError:
                return
            function(first, last)

    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "graphattn")
    helpers = [_pool.submit(work) for _ in range(min(threads, len(ranges)) - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun finds nothing left to do
            helper.result()


# --- rows -----------------------------------------------------------------------------------------------------


def _run(kernel: Any, view: View, width: int, inputs: tuple[Any, ...], results: tuple[Array, ...]) -> _Parts | None:
    """Fill ``results``, one row for each owner, save those of hubs: their parts are returned."""
    ptr, index = view.ptr.numpy(), view.index.numpy()
    edge_id = np.empty(0, index.dtype) if view.edge_id is None else view.edge_id.numpy()
    whole = np.empty(0, ptr.dtype)
    _run_ranges(kernel, whole, ptr[:-1], ptr[1:], _LONGEST, width, (index, edge_id, *inputs, *results))
    if view.num_edges <= _LONGEST:
        return None
    hubs = np.flatnonzero(np.diff(ptr) > _LONGEST)
    if not hubs.size:
        return None
    parts = _Parts(ptr, hubs, results)
    _run_ranges(kernel, parts.rows, parts.begin, parts.end, _LONGEST, width, (index, edge_id, *inputs, *parts.results))
    return parts


def _run_ranges(
    kernel: Any, rows: Array, begin: Array, end: Array, longest: int, width: int, arguments: tuple[Any, ...]
) -> None:
    runs = begin.shape[0]
    if runs == 0:
        return
    edges = int(end[-1]) - int(begin[0])
    threads = torch.get_num_threads()
    if threads == 1 or edges * width < _SERIAL:
        kernel(0, runs, longest, rows, begin, end, *arguments)
        return
    marks = np.linspace(int(begin[0]), int(end[-1]), threads * _PIECES + 1)[1:-1]
    cuts = [0, *np.unique(np.searchsorted(begin, marks)).tolist(), runs]
    _share(lambda first, last: kernel(first, last, longest, rows, begin, end, *arguments), cuts, threads)


class _Parts:
    """Hubs cut into parts of at most ``_LONGEST`` edges, and room for what each part gives."""

    def __init__(self, ptr: Array, hubs: Array, results: tuple[Array, ...]) -> None:
        counts = -(-(ptr[hubs + 1] - ptr[hubs]) // _LONGEST)
        self.hubs = hubs
        self.starts = np.cumsum(counts) - counts
        self.hub_of_part = np.repeat(np.arange(hubs.size), counts)
        self.rows = hubs[self.hub_of_part].astype(ptr.dtype)
        place = np.arange(self.rows.size) - self.starts[self.hub_of_part]
        self.begin = (ptr[self.rows] + place * _LONGEST).astype(ptr.dtype)
        self.end = np.minimum(self.begin + _LONGEST, ptr[self.rows + 1]).astype(ptr.dtype)
        self.results = tuple(np.empty((self.rows.size, *x.shape[1:]), x.dtype) for x in results)

    def add(self, results: tuple[Array, ...]) -> None:
        """Sum the parts, in order."""
        for whole, part in zip(results, self.results, strict=True):
            whole[self.hubs] = np.add.reduceat(part, self.starts, axis=0)

    def merge(self, out: Array, lse: Array) -> None:
        """Weigh the parts of attention by their share of the mass."""
        part_out, part_lse = self.results
        top = np.maximum.reduceat(part_lse, self.starts, axis=0)
        top = np.where(top == -np.inf, 0, top).astype(lse.dtype)
        mass = np.exp(part_lse - top[self.hub_of_part])
        total = np.add.reduceat(mass, self.starts, axis=0)
        share = mass / np.where(total == 0, 1, total)[self.hub_of_part]
        out[self.hubs] = np.add.reduceat(share[..., None] * part_out, self.starts, axis=0)
        with np.errstate(divide="ignore"):
            lse[self.hubs] = top + np.log(total)


# --- the operation --------------------------------------------------------------------------------------------


class _Inputs:
    """The tensors of a call as contiguous arrays in the dtype of the arithmetic."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        edge_bias: Tensor | None,
        edge_gate: Tensor | None,
        scale: float,
        clamp: float | None,
        dropout_p: float,
        dropout_seed: Tensor | None,
    ) -> None:
        self.dtype = accumulate_dtype(q.dtype)
        self.q, self.k, self.v = self.array(q), self.array(k), self.array(v)
        number = self.q.dtype.type
        if edge_bias is None:
            bias = np.empty((0, 0), number)
        else:  # one for all heads, expanded: read the one
            bias = self.array(edge_bias[:, :1] if edge_bias.stride(1) == 0 else edge_bias)
        self.gate = np.empty((0, 0, 0), number) if edge_gate is None else self.array(edge_gate)
        self.scale = number(scale)
        low, high = (0, 0) if dropout_seed is None else dropout_seed.tolist()
        self.all = (
            *(self.q, self.k, self.v, bias, self.gate, self.scale),
            number(np.inf if clamp is None else clamp),
            (low & _MASK, high & _MASK),
            int(dropout_p * 2**32),
            number(1.0 / (1.0 - dropout_p)),
        )
        self.width = self.q.shape[1] * (self.q.shape[2] + self.v.shape[2])

    def array(self, x: Tensor) -> Array:
        return x.detach().to(self.dtype).contiguous().numpy()

    def empty(self, *shape: int) -> Array:
        return torch.empty(shape, dtype=self.dtype).numpy()


def forward(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_bias: Tensor | None,
    edge_gate: Tensor | None,
    scale: float,
    clamp: float | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See the API. Returns output and log-sum-exp."""
    inputs = _Inputs(q, k, v, edge_bias, edge_gate, scale, clamp, dropout_p, dropout_seed)
    results = inputs.empty(q.shape[0], *v.shape[1:]), inputs.empty(*q.shape[:2])
    hubs = _run(kernels.forward, structure.by_target, inputs.width, inputs.all, results)
    if hubs is not None:
        hubs.merge(*results)
    out, lse = results
    return torch.from_numpy(out).to(v.dtype), torch.from_numpy(lse)


def backward(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_bias: Tensor | None,
    edge_gate: Tensor | None,
    scale: float,
    clamp: float | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, edge_bias and edge_gate (empty for an absent one).

    The weights are computed again from the log-sum-exp, once: the pass over targets leaves two numbers for each edge
    and head, which the pass over sources reads.
    """
    inputs = _Inputs(q, k, v, edge_bias, edge_gate, scale, clamp, dropout_p, dropout_seed)
    slopes = inputs.array(grad_out)
    weight, slope = (inputs.empty(structure.num_edges, q.shape[1]) for _ in range(2))
    grad_gate = inputs.empty(*inputs.gate.shape)
    grad_q, grad_k, grad_v = (inputs.empty(*x.shape) for x in (q, k, v))

    saved = inputs.array(out), inputs.array(lse), slopes, inputs.array(grad_lse)
    arguments = (*inputs.all, *saved, weight, slope, grad_gate)
    hubs = _run(kernels.row_pass, structure.by_target, inputs.width, arguments, (grad_q,))
    if hubs is not None:
        hubs.add((grad_q,))
    given = inputs.q, inputs.gate, inputs.scale, slopes, weight, slope
    hubs = _run(kernels.column_pass, structure.by_source, inputs.width, given, (grad_k, grad_v))
    if hubs is not None:
        hubs.add((grad_k, grad_v))

    absent = q.new_empty(0)
    return (
        *(torch.from_numpy(g).to(q.dtype) for g in (grad_q, grad_k, grad_v)),
        absent if edge_bias is None else torch.from_numpy(slope).to(q.dtype),
        absent if edge_gate is None else torch.from_numpy(grad_gate).to(q.dtype),
    )  # type: ignore[return-value]
