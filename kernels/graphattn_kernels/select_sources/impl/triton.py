"""One program has a row of scores in its registers: it finds the k-th largest by bisecting the bits of its key, then
the places of those that are chosen by a running sum. Of equal scores the lowest sources are taken; lists ascend."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import aligned, guard, launch, next_power_of_2

__all__ = ["select_bits", "select_lists"]

_RUNTIME = ["rows", "sources", "words", "k", "room"]


@triton.jit(do_not_specialize=_RUNTIME)
def select_kernel(
    SCORES, ALWAYS, FULL, WORDS, INDEX, LENGTH, rows, sources, words, k, room, at, own,
    P: tl.constexpr, TOP: tl.constexpr, OWN: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """SCORES ``[copies * rows, S]``; WORDS ``[copies * rows, words]``, or INDEX ``[.., room]`` and LENGTH."""
    number = tl.program_id(0)
    row = number % rows
    column = tl.arange(0, P)
    there = column < sources
    score = tl.load(SCORES + number.to(tl.int64) * sources + column, mask=there, other=0)
    forced = column < 0
    if ALWAYS is not None:
        forced = tl.load(ALWAYS + column, mask=there, other=0) != 0
    if OWN:
        forced = forced | (column // own == row)
    if TOP:
        score = tl.where(score == 0.0, 0.0, score)  # -0 and 0 are equal
        # Unsigned keys in the order of the scores; 0 for what is never chosen.
        width: tl.constexpr = 16 if HALF else 32
        if HALF:
            bits = score.to(tl.uint16, bitcast=True).to(tl.uint32)
        else:
            bits = score.to(tl.uint32, bitcast=True)
        sign: tl.constexpr = 1 << (width - 1)
        every: tl.constexpr = 2 * sign - 1
        key = bits ^ tl.where(bits >= sign, every, sign).to(tl.uint32)
        key = tl.where(score != score, every, key)
        open_ = there & (forced == 0) & (score != float("-inf"))
        key = tl.where(open_, key, 0).to(tl.uint32)
        least = tl.full([], 0, tl.uint32)  # the largest number that k keys reach: the k-th largest key
        for step in tl.static_range(width):
            trial = least | tl.full([], 1 << (width - 1 - step), tl.uint32)
            least = tl.where(tl.sum((key >= trial).to(tl.int32), 0) >= k, trial, least)
        above = key > least
        missing = k - tl.sum(above.to(tl.int32), 0)
        equal = (key == least) & open_
        keep = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= missing))
    else:
        keep = score > at
    keep = (keep | forced) & there
    if FULL is not None:
        keep = (keep | (tl.load(FULL + row) != 0)) & there
    if WORDS is not None:
        bit = tl.reshape(keep.to(tl.int32) << (column % 32), (P // 32, 32))
        word = tl.arange(0, P // 32)
        tl.store(WORDS + number.to(tl.int64) * words + word, tl.sum(bit, 1), mask=word < words)
    else:
        place = tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(INDEX + number.to(tl.int64) * room + place, column, mask=keep & (place < room))
        tl.store(LENGTH + number, tl.minimum(tl.sum(keep.to(tl.int32), 0), room))


def select_bits(scores: Tensor, k: int, at: float, always: Tensor | None, full: Tensor | None, own: int) -> Tensor:
    """See the API."""
    words = -(-scores.shape[2] // 32)
    out = scores.new_empty((*scores.shape[:2], words), dtype=torch.int32)
    _launch(scores, k, at, always, full, own, words, 0, (out, None, None))
    return out


def select_lists(scores: Tensor, k: int, room: int, always: Tensor | None, own: int) -> tuple[Tensor, Tensor]:
    """See the API."""
    index = scores.new_zeros((*scores.shape[:2], room), dtype=torch.int32)
    length = scores.new_empty(scores.shape[:2], dtype=torch.int32)
    _launch(scores, k, 0.0, always, None, own, 0, room, (None, index, length))
    return index, length


def _launch(
    scores: Tensor, k: int, at: float, always: Tensor | None, full: Tensor | None, own: int, words: int, room: int,
    outs: tuple[Any, ...],
) -> None:  # fmt: skip
    with guard(scores):
        scores = aligned(scores.contiguous())
        copies, rows, sources = scores.shape
        masks = [None if x is None else aligned(x.contiguous().view(torch.uint8)) for x in (always, full)]
        width = max(32, next_power_of_2(max(sources, 1)))
        constants = {
            "P": width,
            "TOP": k >= 0,
            "OWN": own > 0,
            "HALF": scores.dtype in (torch.float16, torch.bfloat16),
            "num_warps": 1 if width <= 512 else 4 if width <= 4096 else 8 if width <= 8192 else 16,
            "num_stages": 1,
        }
        args = (scores, *masks, *outs, rows, sources, words, max(k, 0), room, float(at), max(own, 1))
        launch(select_kernel, (copies * rows, 1, 1), args, constants)
