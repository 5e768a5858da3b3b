"""One program has a row of scores in its registers: it finds the k-th largest, and the places of those that are chosen
by a running sum. Of equal scores the lowest sources are taken; lists ascend.

A row is cut in two halves, and each lane has a source of either: flags, counts and running sums of both stand in one
number, 16 bits each, and so do the keys of half types.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import aligned, guard, launch, next_power_of_2

__all__ = ["order_sources", "select_bits", "select_lists"]

_RANKED, _COMPARED = 16, 128  # sources whose ranks a program finds, and those that it compares them with in a step
_RUNTIME = ["rows", "sources", "words", "k", "room"]


@triton.jit
def _load(SCORES, ALWAYS, column, row, sources, own, OWN: tl.constexpr):
    """Scores of some sources, and which are there, and which are forced."""
    there = column < sources
    score = tl.load(SCORES + column, mask=there, other=0)
    forced = column < 0
    if ALWAYS is not None:
        forced = tl.load(ALWAYS + column, mask=there, other=0) != 0
    if OWN:
        forced = forced | (column // own == row)
    return score, there, forced & there


@triton.jit
def _key(score, open_, HALF: tl.constexpr):
    """Whole numbers in the order of the scores: int32 that may be negative, or of half types 16 bits; the least for
    what is never chosen."""
    wide = score.to(tl.float32)  # the interpreter compares the bits of bfloat16
    if HALF:
        bits = score.to(tl.uint16, bitcast=True).to(tl.int32)
        bits = tl.where(wide == 0.0, 0, bits)  # -0 and 0 are equal
        key = bits ^ tl.where(bits >= 0x8000, 0xFFFF, 0x8000)
        return tl.where(open_, tl.where(wide != wide, 0xFFFF, key), 0)
    else:
        bits = wide.to(tl.int32, bitcast=True)
        bits = tl.where(wide == 0.0, 0, bits)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        return tl.where(open_, tl.where(wide != wide, 0x7FFFFFFE, key), -0x80000000)


@triton.jit
def _pair(first, second):
    """Flags of both halves, in one number."""
    return first.to(tl.uint32) | (second.to(tl.uint32) << 16)


@triton.jit
def _reach(first, second, least, HALF: tl.constexpr):
    """Which keys are ``least`` or more. Of half types, ``first`` has 15 bits of both keys, each with a 1 before it:
    what a subtraction leaves of it is the answer."""
    if HALF:
        least = least.to(tl.uint32)
        return ((first - (least | (least << 16))) >> 15) & 0x00010001
    else:
        least = least.to(tl.int32)
        return _pair(first >= least, second >= least)


@triton.jit
def _count(flags):
    """How many there are in either half."""
    total = tl.sum(flags.to(tl.int32), 0)
    return total & 0xFFFF, total >> 16


@triton.jit
def _running(flags):
    """How many there are up to each lane, in either half, from the beginning of the row."""
    upto = tl.cumsum(flags.to(tl.int32), 0)
    first, _ = _count(flags)
    return upto & 0xFFFF, (upto >> 16) + first


@triton.jit
def _best(first, second, k, low, high, HALF: tl.constexpr):
    """The largest number that k keys reach (any that exactly k reach will do), how many reach it, and how many the
    next.

    By interpolation between the numbers of keys that reach ``low`` and that reach ``high`` (none); every third step
    halves, so that no distribution takes long.
    """
    one, two = _count(_reach(first, second, low, HALF))
    at_low = one + two
    at_high = 0
    step = 0
    while (high - low > 1) & (at_low > k):
        step += 1
        share = (at_low - k + 0.5) / (at_low - at_high)
        share = tl.where(step % 3 == 0, 0.5, share)
        trial = low + ((high - low).to(tl.float32) * share).to(tl.int64)
        trial = tl.minimum(tl.maximum(trial, low + 1), high - 1)
        one, two = _count(_reach(first, second, trial, HALF))
        enough = one + two >= k
        low = tl.where(enough, trial, low)
        at_low = tl.where(enough, one + two, at_low)
        high = tl.where(enough, high, trial)
        at_high = tl.where(enough, at_high, one + two)
    return low, at_low, at_high


@triton.jit
def _top(score1, score2, open1, open2, k, HALF: tl.constexpr):
    """Flags of the k best, of equal ones the lowest."""
    key1, key2 = _key(score1, open1, HALF), _key(score2, open2, HALF)
    if HALF:
        odd = _pair(key1 & 1, key2 & 1)
        key1, key2 = key1 >> 1, key2 >> 1
    low = tl.min(tl.minimum(tl.where(open1, key1, 0x7FFFFFFF), tl.where(open2, key2, 0x7FFFFFFF)), 0).to(tl.int64)
    high = tl.max(tl.maximum(key1, key2), 0).to(tl.int64)
    low = tl.minimum(low, high)
    if HALF:
        key1 = _pair(key1, key2) | 0x80008000
        low = tl.maximum(low, 1)
    else:
        low = tl.maximum(low, -0x7FFFFFFF)
    low, at_low, at_high = _best(key1, key2, k, low, high + 1, HALF)
    keep = _reach(key1, key2, low, HALF)
    if at_low > k:
        above = _reach(key1, key2, low + 1, HALF)
        equal = keep ^ above
        missing = k - at_high
        if HALF:  # one bit is left
            one, two = _count(equal & odd)
            higher = one + two < missing
            above = tl.where(higher, above | (equal & odd), above)
            missing = tl.where(higher, missing - one - two, missing)
            equal &= tl.where(higher, odd ^ 0x00010001, odd)
        upto1, upto2 = _running(equal)
        keep = above | (equal & _pair(upto1 <= missing, upto2 <= missing))
    return keep


@triton.jit(do_not_specialize=_RUNTIME)
def select_kernel(
    SCORES, ALWAYS, FULL, WORDS, INDEX, LENGTH, rows, sources, words, k, room, at, own,
    P: tl.constexpr, TOP: tl.constexpr, OWN: tl.constexpr, HALF: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """SCORES ``[copies * rows, S]``; WORDS ``[copies * rows, words]``, or INDEX ``[.., room]`` and LENGTH. A program
    has a row, P / 2 sources and P / 2 more."""
    number = tl.program_id(0).to(tl.int64)
    row = (number % rows).to(tl.int32)
    sources = sources // ALIGN * ALIGN  # as it is: now Triton knows how many can be loaded at once
    column = tl.arange(0, P // 2)
    score1, there1, forced1 = _load(SCORES + number * sources, ALWAYS, column, row, sources, own, OWN)
    score2, there2, forced2 = _load(SCORES + number * sources, ALWAYS, column + P // 2, row, sources, own, OWN)
    if TOP:
        open1 = there1 & (forced1 == 0) & (score1 != float("-inf"))
        open2 = there2 & (forced2 == 0) & (score2 != float("-inf"))
        keep = _top(score1, score2, open1, open2, k, HALF)
    else:
        keep = _pair(there1 & (score1 > at), there2 & (score2 > at))
    if (ALWAYS is not None) or OWN:
        keep |= _pair(forced1, forced2)
    if FULL is not None:
        keep |= _pair(there1, there2) * (tl.load(FULL + row) != 0).to(tl.uint32)
    if WORDS is not None:
        half: tl.constexpr = P // 64
        word = tl.arange(0, half)
        WORDS += number * words
        bit = tl.reshape((keep & 1).to(tl.int32) << (column % 32), (half, 32))
        tl.store(WORDS + word, tl.sum(bit, 1), mask=word < words)
        bit = tl.reshape((keep >> 16).to(tl.int32) << (column % 32), (half, 32))
        tl.store(WORDS + half + word, tl.sum(bit, 1), mask=half + word < words)
    else:
        place1, place2 = _running(keep)
        place1 -= 1
        place2 -= 1
        one, two = _count(keep)
        INDEX += number * room
        tl.store(INDEX + place1, column, mask=((keep & 1) != 0) & (place1 < room))
        tl.store(INDEX + place2, column + P // 2, mask=((keep >> 16) != 0) & (place2 < room))
        length = tl.minimum(one + two, room)
        tl.store(LENGTH + number, length)
        for start in range(length, room, P // 2):  # what is not in use is some source or other
            tl.store(INDEX + start + column, tl.zeros([P // 2], tl.int32), mask=start + column < room)


@triton.jit(do_not_specialize=["sources", "chunks"])
def order_kernel(SCORES, ORDER, sources, chunks, N: tl.constexpr, C: tl.constexpr):
    """SCORES ``[copies, S]`` in float32, ORDER ``[copies, S]``. A program has N sources and compares them with all."""
    copy = (tl.program_id(0) // chunks).to(tl.int64)
    SCORES += copy * sources
    mine = tl.program_id(0) % chunks * N + tl.arange(0, N)
    there = mine < sources
    key = _key(tl.load(SCORES + mine, mask=there, other=0.0), there, False)
    before = tl.zeros([N, C], tl.int32)
    for start in range(0, sources, C):
        other = start + tl.arange(0, C)
        present = other < sources
        score = tl.load(SCORES + other, mask=present, other=float("nan"))  # what is not there comes last
        first = (other[None, :] < mine[:, None]).to(tl.int32)  # of equal scores
        before += (_key(score, other >= 0, False)[None, :] < key[:, None] + first).to(tl.int32)
    tl.store(ORDER + copy * sources + tl.sum(before, 1), mine.to(tl.int64), mask=there)


def order_sources(scores: Tensor) -> Tensor:
    """See the API."""
    copies, sources = scores.shape
    order = scores.new_empty(scores.shape, dtype=torch.int64)
    chunks = -(-sources // _RANKED)
    with guard(scores):
        scores = aligned(scores.float().contiguous())
        constants = {"N": _RANKED, "C": _COMPARED, "num_warps": 4, "num_stages": 1}
        launch(order_kernel, (copies * chunks, 1, 1), (scores, order, sources, chunks), constants)
    return order


def select_bits(scores: Tensor, k: int, at: float, always: Tensor | None, full: Tensor | None, own: int) -> Tensor:
    """See the API."""
    words = -(-scores.shape[2] // 32)
    out = scores.new_empty((*scores.shape[:2], words), dtype=torch.int32)
    _launch(scores, k, at, always, full, own, words, 0, (out, None, None))
    return out


def select_lists(scores: Tensor, k: int, room: int, always: Tensor | None, own: int) -> tuple[Tensor, Tensor]:
    """See the API."""
    index = scores.new_empty((*scores.shape[:2], room), dtype=torch.int32)
    length = scores.new_empty(scores.shape[:2], dtype=torch.int32)
    _launch(scores, k, 0.0, always, None, own, 0, room, (None, index, length))
    return index, length


def _warps(width: int, rows: int) -> int:
    """16 pairs of sources for a thread; where most of the device is idle anyway, as in a draw, 8."""
    return min(max(width // (1024 if rows > 64 else 512), 1), 32)


def _launch(
    scores: Tensor, k: int, at: float, always: Tensor | None, full: Tensor | None, own: int, words: int, room: int,
    outs: tuple[Any, ...],
) -> None:  # fmt: skip
    with guard(scores):
        scores = aligned(scores.contiguous())
        copies, rows, sources = scores.shape
        masks = [None if x is None else aligned(x.contiguous().view(torch.uint8)) for x in (always, full)]
        width = max(64, next_power_of_2(max(sources, 1)))
        constants = {
            "P": width,
            "TOP": k >= 0,
            "OWN": own > 0,
            "HALF": scores.dtype in (torch.float16, torch.bfloat16),
            "ALIGN": math.gcd(sources, 16 // scores.element_size()) if sources else 1,
            "num_warps": _warps(width, copies * rows),
            "num_stages": 1,
        }
        args = (scores, *masks, *outs, rows, sources, words, max(k, 0), room, float(at), max(own, 1))
        launch(select_kernel, (copies * rows, 1, 1), args, constants)
