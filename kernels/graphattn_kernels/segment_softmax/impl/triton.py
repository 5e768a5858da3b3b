"""Triton, for CUDA: rows sorted by degree, short ones read once, longer ones twice; hubs cut into parts.

Forward and backward are alike: a number or two for each row (maximum and sum; the sum of w * dw), then a number for
each edge. The parts of a hub wait for the numbers of the whole hub.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._schedule import Schedule, schedule_of
from graphattn_kernels._segment import accumulate_dtype
from graphattn_kernels._sparse_triton import accumulator, load_runs
from graphattn_kernels._triton import guard, launch
from graphattn_kernels.spmm.impl.triton import sum_parts
from graphattn_kernels.structure import View

__all__ = ["backward", "segment_softmax"]

_TILE = 512  # numbers of one program of one warp
_UNROLL = 16  # edges of a row at a time
_HEADS = 64  # at most
_MERGE_PROGRAMS = 1024
_MERGE_PARTS = 32


class _Launch:
    """What the launches of a call have in common."""

    def __init__(self, view: View, heads: int, dtype: torch.dtype) -> None:
        self.schedule: Schedule = schedule_of(view)
        self.group = min(_HEADS, 1 << (max(heads, 1) - 1).bit_length())
        self.groups = -(-heads // self.group)
        tile = _TILE // 2 if dtype == torch.float64 else _TILE
        self.rows = max(1, min(32, tile // (self.group * _UNROLL)))
        self.arrays = (view.edge_id, *self.schedule[:3])
        self.constants = {"H": heads, "HB": self.group, "R": self.rows, "U": _UNROLL, "ACC": accumulator(dtype)}

    def run(self, kernel: Any, runs: int, tensors: tuple[Tensor | None, ...], *numbers: int) -> None:
        grid = -(-runs // self.rows), self.groups, 1
        launch(kernel, grid, (*tensors, *self.arrays, runs, *numbers), {**self.constants, "num_warps": 1})


def segment_softmax(view: View, scores: Tensor) -> tuple[Tensor, Tensor]:
    """See the API."""
    heads = scores.shape[1]
    wide = accumulate_dtype(scores.dtype)
    scores = scores.contiguous()
    weights = torch.empty_like(scores)
    lse = scores.new_empty((view.num_owners, heads), dtype=wide)
    with guard(scores):
        call = _Launch(view, heads, wide)
        runs, hubs, num_parts = call.schedule.row.shape[0], call.schedule.hubs, call.schedule.num_parts
        parts = None if hubs is None else scores.new_empty((num_parts, 2, heads), dtype=wide)
        call.run(softmax_kernel, runs, (scores, weights, lse, parts), num_parts)
        if hubs is not None:
            grid = min(hubs.row.shape[0], _MERGE_PROGRAMS), call.groups, 1
            merge = {"H": heads, "HB": call.group, "B": _MERGE_PARTS, "ACC": accumulator(wide), "num_warps": 4}
            launch(merge_kernel, grid, (lse, parts, *hubs), merge)
            call.run(part_softmax_kernel, num_parts, (scores, weights, parts))
    return weights, lse


def backward(view: View, weights: Tensor, grad: Tensor, grad_lse: Tensor | None) -> Tensor:
    """``weights * (grad - the row's sum of weights * grad + grad_lse)``."""
    heads = weights.shape[1]
    wide = accumulate_dtype(weights.dtype)
    weights, grad = weights.contiguous(), grad.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    out = torch.empty_like(weights)
    with guard(weights):
        call = _Launch(view, heads, wide)
        runs, hubs, num_parts = call.schedule.row.shape[0], call.schedule.hubs, call.schedule.num_parts
        parts = None if hubs is None else weights.new_empty((num_parts, heads), dtype=wide)
        call.run(gradient_kernel, runs, (weights, grad, grad_lse, out, parts), num_parts)
        if parts is not None:
            total = parts.new_empty((view.num_owners, heads))  # only the rows of hubs are used
            sum_parts(total, parts, call.schedule)
            call.run(part_gradient_kernel, num_parts, (weights, grad, grad_lse, out, total))
    return out


@triton.jit
def _edges(EDGE, begin, end, step, head, H: tl.constexpr, U: tl.constexpr):
    """Places ``[R, U, HB]`` of the numbers of the next U edges of each run, and which are there."""
    at = begin[:, None] + (step + tl.arange(0, U))[None, :]
    there = at < end[:, None]
    edge = at.to(tl.int64)
    if EDGE is not None:
        edge = tl.load(EDGE + at, mask=there, other=0).to(tl.int64)
    return (edge * H)[:, :, None] + head[None, None, :], there[:, :, None] & (head < H)[None, None, :]


@triton.jit
def _softmax_step(top, total, score):
    new_top = tl.maximum(top, tl.max(score, 1))
    # While every score is -inf, any finite number keeps the exponentials at 0.
    finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    total = total * tl.exp(top - finite_top) + tl.sum(tl.exp(score - finite_top[:, None, :]), 1)
    return new_top, total


@triton.jit
def _store_lse(LSE, where, top, total, mask):
    """Returns a finite maximum and the inverse of the sum, which make the weights."""
    divisor = tl.where(total == 0.0, 1.0, total)
    tl.store(LSE + where, tl.where(total == 0.0, float("-inf"), top + tl.log(divisor)), mask=mask)
    return tl.where(top == float("-inf"), 0.0, top), 1.0 / divisor


@triton.jit
def _store_weights(WEIGHTS, where, mask, score, top, norm):
    weight = tl.exp(score - top[:, None, :]) * norm[:, None, :]
    tl.store(WEIGHTS + where, weight.to(WEIGHTS.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_runs", "num_parts"])
def softmax_kernel(
    SCORES, WEIGHTS, LSE, PARTS, EDGE, ROW, BEGIN, END, num_runs, num_parts,
    H: tl.constexpr, HB: tl.constexpr, R: tl.constexpr, U: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Whole rows give weights and LSE ``[N, H]``; parts of hubs give their maximum and sum, PARTS ``[parts, 2, H]``."""
    run, row, begin, end = load_runs(ROW, BEGIN, END, num_runs, R)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    longest = tl.max(end - begin, 0)
    # The first U edges, mostly all of them, stay in registers.
    where, mask = _edges(EDGE, begin, end, 0, head, H, U)
    score = tl.load(SCORES + where, mask=mask, other=float("-inf")).to(ACC)
    top, total = _softmax_step(tl.full([R, HB], float("-inf"), ACC), tl.zeros([R, HB], ACC), score)
    for step in range(U, longest, U):
        more, there = _edges(EDGE, begin, end, step, head, H, U)
        top, total = _softmax_step(top, total, tl.load(SCORES + more, mask=there, other=float("-inf")).to(ACC))

    whole = run >= num_parts
    exists = (row >= 0)[:, None] & (head < H)[None, :]
    if PARTS is not None:
        slot = (run.to(tl.int64) * (2 * H))[:, None] + head[None, :]
        tl.store(PARTS + slot, top, mask=exists & ~whole[:, None])
        tl.store(PARTS + slot + H, total, mask=exists & ~whole[:, None])
        end = tl.where(whole, end, begin)
        mask = mask & whole[:, None, None]
    top, norm = _store_lse(LSE, (row * H)[:, None] + head[None, :], top, total, exists & whole[:, None])
    _store_weights(WEIGHTS, where, mask, score, top, norm)
    for step in range(U, tl.max(end - begin, 0), U):
        more, there = _edges(EDGE, begin, end, step, head, H, U)
        score = tl.load(SCORES + more, mask=there, other=float("-inf")).to(ACC)
        _store_weights(WEIGHTS, more, there, score, top, norm)


@triton.jit
def merge_kernel(
    LSE, PARTS, HUB_ROW, PART_PTR, COUNT, H: tl.constexpr, HB: tl.constexpr, B: tl.constexpr, ACC: tl.constexpr
):
    """LSE of the hubs; each part gets the finite maximum and the inverse of the sum of its whole hub."""
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    for hub in range(tl.program_id(0), tl.load(COUNT), tl.num_programs(0)):
        first = tl.load(PART_PTR + hub)
        last = tl.load(PART_PTR + hub + 1)
        top = tl.full([HB], float("-inf"), ACC)
        total = tl.zeros([HB], ACC)
        for begin in range(first, last, B):
            part = (begin + tl.arange(0, B)).to(tl.int64)
            mask = (part < last)[:, None] & (head < H)[None, :]
            slot = (part * (2 * H))[:, None] + head[None, :]
            part_top = tl.load(PARTS + slot, mask=mask, other=float("-inf"))
            part_total = tl.load(PARTS + slot + H, mask=mask, other=0.0)
            new_top = tl.maximum(top, tl.max(part_top, 0))
            finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
            total = total * tl.exp(top - finite_top) + tl.sum(part_total * tl.exp(part_top - finite_top[None, :]), 0)
            top = new_top
        row = tl.load(HUB_ROW + hub).to(tl.int64)
        top, norm = _store_lse(LSE, row * H + head, top, total, head < H)
        tl.debug_barrier()  # every part has been read
        for begin in range(first, last, B):
            part = (begin + tl.arange(0, B)).to(tl.int64)
            mask = (part < last)[:, None] & (head < H)[None, :]
            slot = (part * (2 * H))[:, None] + head[None, :]
            tl.store(PARTS + slot, tl.broadcast_to(top[None, :], (B, HB)), mask=mask)
            tl.store(PARTS + slot + H, tl.broadcast_to(norm[None, :], (B, HB)), mask=mask)


@triton.jit(do_not_specialize=["num_parts"])
def part_softmax_kernel(
    SCORES, WEIGHTS, PARTS, EDGE, ROW, BEGIN, END, num_parts,
    H: tl.constexpr, HB: tl.constexpr, R: tl.constexpr, U: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Weights of the parts of hubs, after the merge."""
    run, row, begin, end = load_runs(ROW, BEGIN, END, num_parts, R)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    slot = (run.to(tl.int64) * (2 * H))[:, None] + head[None, :]
    exists = (row >= 0)[:, None] & (head < H)[None, :]
    top = tl.load(PARTS + slot, mask=exists, other=0.0)
    norm = tl.load(PARTS + slot + H, mask=exists, other=0.0)
    for step in range(0, tl.max(end - begin, 0), U):
        where, mask = _edges(EDGE, begin, end, step, head, H, U)
        score = tl.load(SCORES + where, mask=mask, other=float("-inf")).to(ACC)
        _store_weights(WEIGHTS, where, mask, score, top, norm)


@triton.jit
def _shift(total, GRAD_LSE, where, mask):
    if GRAD_LSE is not None:
        total -= tl.load(GRAD_LSE + where, mask=mask, other=0.0)
    return total


@triton.jit
def _store_gradient(OUT, where, mask, weight, grad, shift):
    tl.store(OUT + where, (weight * (grad - shift[:, None, :])).to(OUT.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_runs", "num_parts"])
def gradient_kernel(
    WEIGHTS, GRAD, GRAD_LSE, OUT, PARTS, EDGE, ROW, BEGIN, END, num_runs, num_parts,
    H: tl.constexpr, HB: tl.constexpr, R: tl.constexpr, U: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Whole rows give OUT ``[E, H]``; parts of hubs give their sum of ``w g``, PARTS ``[parts, H]``."""
    run, row, begin, end = load_runs(ROW, BEGIN, END, num_runs, R)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    longest = tl.max(end - begin, 0)
    where, mask = _edges(EDGE, begin, end, 0, head, H, U)
    weight = tl.load(WEIGHTS + where, mask=mask, other=0.0).to(ACC)
    grad = tl.load(GRAD + where, mask=mask, other=0.0).to(ACC)
    total = tl.sum(weight * grad, 1)
    for step in range(U, longest, U):
        more, there = _edges(EDGE, begin, end, step, head, H, U)
        product = tl.load(WEIGHTS + more, mask=there, other=0.0).to(ACC)
        product *= tl.load(GRAD + more, mask=there, other=0.0).to(ACC)
        total += tl.sum(product, 1)

    whole = run >= num_parts
    exists = (row >= 0)[:, None] & (head < H)[None, :]
    if PARTS is not None:
        tl.store(PARTS + (run.to(tl.int64) * H)[:, None] + head[None, :], total, mask=exists & ~whole[:, None])
        end = tl.where(whole, end, begin)
        mask = mask & whole[:, None, None]
    shift = _shift(total, GRAD_LSE, (row * H)[:, None] + head[None, :], exists)
    _store_gradient(OUT, where, mask, weight, grad, shift)
    for step in range(U, tl.max(end - begin, 0), U):
        more, there = _edges(EDGE, begin, end, step, head, H, U)
        weight = tl.load(WEIGHTS + more, mask=there, other=0.0).to(ACC)
        grad = tl.load(GRAD + more, mask=there, other=0.0).to(ACC)
        _store_gradient(OUT, more, there, weight, grad, shift)


@triton.jit(do_not_specialize=["num_parts"])
def part_gradient_kernel(
    WEIGHTS, GRAD, GRAD_LSE, OUT, TOTAL, EDGE, ROW, BEGIN, END, num_parts,
    H: tl.constexpr, HB: tl.constexpr, R: tl.constexpr, U: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """OUT of the parts of hubs, from the hubs' TOTAL ``[N, H]``."""
    _, row, begin, end = load_runs(ROW, BEGIN, END, num_parts, R)
    head = tl.program_id(1) * HB + tl.arange(0, HB)
    at_row = (row * H)[:, None] + head[None, :]
    exists = (row >= 0)[:, None] & (head < H)[None, :]
    shift = _shift(tl.load(TOTAL + at_row, mask=exists, other=0.0), GRAD_LSE, at_row, exists)
    for step in range(0, tl.max(end - begin, 0), U):
        where, mask = _edges(EDGE, begin, end, step, head, H, U)
        weight = tl.load(WEIGHTS + where, mask=mask, other=0.0).to(ACC)
        grad = tl.load(GRAD + where, mask=mask, other=0.0).to(ACC)
        _store_gradient(OUT, where, mask, weight, grad, shift)
