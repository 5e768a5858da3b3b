"""One program has a row of scores in its registers, as float32: it finds the k-th largest, and the places of those that
are chosen by a running sum. Of equal scores the lowest sources are taken; lists ascend.

A thread has runs of 4 neighbours. What can be said once for a run is: how many of it are above the k-th, how many are
its equals, where its first entry goes. What is left for a single score is a comparison, for each step of the search and
once more in the end; keys are made of thresholds alone.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import aligned, guard, launch, next_power_of_2

__all__ = ["select_bits", "select_lists"]

_RUN = 4  # neighbours of a thread: 16 bytes of what it stores
_RUNTIME = ["rows", "sources", "words", "k", "room"]
# Scores of a dtype in their order are whole numbers: the bits of float32 without those that are always 0.
_SPARE = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


@triton.jit
def _edge(key, SPARE: tl.constexpr):
    """The largest float32 below all scores of this key (of the one above infinity: infinity, NaN alone is above)."""
    whole = tl.minimum((key << SPARE) - 1, 0x7F800000)
    return (whole ^ ((whole >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _key(value, SPARE: tl.constexpr):
    """The key of a number."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SPARE


@triton.jit
def _wide(score, SPARE: tl.constexpr):
    """As float32."""
    if SPARE == 16:  # the interpreter takes the smallest numbers of bfloat16 for 0
        return (score.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return score.to(tl.float32)


@triton.jit
def _above(score, edge):
    """Which scores are larger; NaN is."""
    return (score <= edge) == 0


@triton.jit
def _add3(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _moments(score):
    """How many scores are above -inf, their sum, and the sum of their squares (float32: a guess rests on them)."""
    open_ = _above(score, float("-inf"))
    finite = tl.where(open_, score, 0.0)
    n, total, square = tl.sum(open_.to(tl.float32), 1), tl.sum(finite, 1), tl.sum(finite * finite, 1)
    return tl.reduce((n, total, square), 0, _add3)


@triton.jit
def _count(score, key, SPARE: tl.constexpr):
    """How many scores reach a key."""
    return tl.sum(tl.sum(_above(score, _edge(key, SPARE)).to(tl.int32), 1), 0)


@triton.jit
def _search(score, k, deviate, density, SPARE: tl.constexpr):
    """``low``, ``high`` and how many reach ``high``: k scores or more reach ``low`` (or it is the lowest of all),
    no more than k reach ``high``, and either k reach ``low``, or no key is between the two.

    The first guess is that scores are normally distributed, the second goes along the slope there; then come lines
    between the two ends, and after 5 steps halves: 3 steps where the guess is good, never many more than bits.
    """
    low, high = -(0x7F800000 >> SPARE), (0x7F800000 >> SPARE) + 2
    n, total, square = _moments(score)
    at_low, at_high = n.to(tl.int32), 0
    mean = total / n
    spread = tl.sqrt(tl.maximum(square / n - mean * mean, 0.0))
    each = spread / (n * density)  # between one score and the next
    guess = mean + deviate * spread
    from_, to = float("-inf"), float("inf")
    step = 0
    while (low + 1 < high) & (at_low > k):
        middle = (low & high) + ((low ^ high) >> 1)
        sane = (guess > -3e38) & (guess < 3e38) & (step < 5)
        trial = tl.where(sane, _key(guess, SPARE), middle)
        trial = tl.minimum(tl.maximum(trial, low + 1), high - 1)
        edge = _edge(trial, SPARE)
        count = _count(score, trial, SPARE)
        enough = count >= k
        low = tl.where(enough, trial, low)
        at_low = tl.where(enough, count, at_low)
        from_ = tl.where(enough, edge, from_)
        high = tl.where(enough, high, trial)
        at_high = tl.where(enough, at_high, count)
        to = tl.where(enough, to, edge)
        along = edge + (count - k).to(tl.float32) * each * tl.where(step == 0, 1.0, 2.0)
        line = from_ + (at_low - k + 0.5) / (at_low - at_high) * (to - from_)
        guess = tl.where((from_ > float("-inf")) & (to < float("inf")), line, along)
        step += 1
    return low, high, at_high


@triton.jit
def _top(score, forced, k, deviate, density, FORCED: tl.constexpr, SPARE: tl.constexpr):
    """Which scores are the k best, of equal ones the lowest, or forced; and how many such are before each run."""
    low, high, at_high = _search(score, k, deviate, density, SPARE)
    if low > (0x7F800000 >> SPARE):  # so many are NaN
        score = tl.where(score == score, float("-inf"), float("inf"))
        low -= 1
        high = low + 1
    below, upper = _edge(low, SPARE), _edge(high, SPARE)
    missing = k - at_high  # so many of those between are taken
    # Sums below 2^24, exact: how many of a run reach either.
    both = tl.sum(_above(score, upper).to(tl.float32) + _above(score, below).to(tl.float32) * 65536.0, 1).to(tl.int32)
    better = both & 0xFFFF
    equal = (both >> 16) - better
    if FORCED:
        better += tl.sum(forced.to(tl.int32), 1)
    number = better | (equal << 16)
    before = tl.cumsum(number, 0) - number
    equals = (before >> 16) & 0xFFFF
    take = tl.minimum(tl.maximum(missing - equals, 0), equal)
    keep = _above(score, tl.where(take == equal, below, upper)[:, None])
    if tl.max(((take > 0) & (take < equal)).to(tl.int32), 0) > 0:  # the last of the k has an equal in its run
        alike = _above(score, below) & (_above(score, upper) == 0)
        keep = keep | (alike & (tl.cumsum(alike.to(tl.int32), 1) <= take[:, None]))
    if FORCED:
        keep = keep | forced
    return keep, (before & 0xFFFF) + tl.minimum(equals, missing)


@triton.jit
def _apart(x):
    """The four columns of ``x [runs, 4]``, which stay with their threads."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _load_column(SCORES, at, sources):
    return tl.load(SCORES + at, mask=at < sources, other=float("-inf"))


@triton.jit
def _together(SCORES, run, sources):
    """The inverse, of scores: ``[runs, 4]``."""
    even = tl.join(_load_column(SCORES, run * 4, sources), _load_column(SCORES, run * 4 + 2, sources))
    odd = tl.join(_load_column(SCORES, run * 4 + 1, sources), _load_column(SCORES, run * 4 + 3, sources))
    return tl.reshape(tl.join(even, odd), (run.shape[0], 4))


@triton.jit
def _store_runs(INDEX, place, fits, run):
    """Store the sources that fit at their places, column by column: stored as they stand, ``[runs, 4]``, neighbours
    would first be dealt to different threads, as Triton does where it does not know that addresses are in a row."""
    places, fit = _apart(place), _apart(fits)
    for i in tl.static_range(4):
        tl.store(INDEX + places[i], run * 4 + i, mask=fit[i])


@triton.jit(do_not_specialize=_RUNTIME)
def select_kernel(
    SCORES, ALWAYS, FULL, WORDS, INDEX, LENGTH, rows, sources, words, k, room, at, own, deviate, density,
    P: tl.constexpr, RUN: tl.constexpr, TOP: tl.constexpr, OWN: tl.constexpr, CUT: tl.constexpr, SPARE: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """SCORES ``[copies * rows, S]``; WORDS ``[copies * rows, words]``, or INDEX ``[.., room]`` and LENGTH. A program
    has a row, P / RUN runs."""
    FORCED: tl.constexpr = (ALWAYS is not None) or OWN
    number = tl.program_id(0).to(tl.int64)
    row = (number % rows).to(tl.int32)
    sources = sources // ALIGN * ALIGN  # as it is: now Triton knows how many can be loaded at once
    run, entry = tl.arange(0, P // RUN), tl.arange(0, RUN)
    column = run[:, None] * RUN + entry[None, :]
    there = column < sources
    forced = column < 0
    if ALWAYS is not None:
        forced = tl.load(ALWAYS + column, mask=there, other=0) != 0
    if OWN:
        forced = there & (forced | (column // own == row))
    if TOP:
        if ALIGN < RUN:  # neighbours that are not loaded at once would be dealt to different threads
            score = _together(SCORES + number * sources, run, sources)
        else:
            score = tl.load(SCORES + number * sources + column, mask=there, other=float("-inf"))
        score = _wide(score, SPARE)
        if FORCED:
            score = tl.where(forced, float("-inf"), score)
        keep, place = _top(score, forced, k, deviate, density, FORCED, SPARE)
    else:
        score = tl.load(SCORES + number * sources + column, mask=there, other=0).to(tl.float32)
        keep = (there & (score > at)) | forced
        place = run
    if FULL is not None:
        keep = keep | (there & (tl.load(FULL + row) != 0))
    if WORDS is not None:
        part = tl.sum(keep.to(tl.int32) << entry[None, :], 1)
        part = tl.reshape(part, (P // 32, 32 // RUN)) << (tl.arange(0, 32 // RUN) * RUN)[None, :]
        word = tl.arange(0, P // 32)
        tl.store(WORDS + number * words + word, tl.sum(part, 1), mask=word < words)
    else:
        place = place[:, None] + tl.cumsum(keep.to(tl.int32), 1)
        length = tl.max(tl.max(place, 1), 0)
        fits = keep
        if CUT:
            fits = keep & (place <= room)
            length = tl.minimum(length, room)
        _store_runs(INDEX + number * room - 1, place, fits, run)
        tl.store(LENGTH + number, length)
        for start in range(length, room, P // RUN):  # what is not in use is some source or other
            tl.store(INDEX + number * room + start + run, tl.zeros([P // RUN], tl.int32), mask=start + run < room)


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


@lru_cache(1024)
def _guess(k: int, sources: int) -> tuple[float, float]:
    """By how many deviations the k-th of so many is above the mean, and the density there, of a normal distribution."""
    normal = NormalDist()
    deviate = normal.inv_cdf(1 - min(max((k - 0.5) / max(sources, 1), 1e-6), 1 - 1e-6))
    return deviate, normal.pdf(deviate)


def _warps(width: int, rows: int) -> int:
    """32 sources for a thread; where most of the device is idle anyway, as in a draw, 16."""
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
        warps = _warps(width, copies * rows)
        constants = {
            "P": width,
            "RUN": _RUN,
            "TOP": k >= 0,
            "OWN": own > 0,
            "CUT": room < k or always is not None or own > 0,
            "SPARE": _SPARE.get(scores.dtype, 0),
            "ALIGN": math.gcd(sources, 16 // scores.element_size()) if sources else 1,
            "num_warps": warps,
            "num_stages": 1,
            "maxnreg": 128 if warps < 32 and width > 512 * warps else 64,  # 16 warps a multiprocessor, or 32
        }
        k = min(max(k, 0), sources)
        args = (scores, *masks, *outs, rows, sources, words, k, room, float(at), max(own, 1), *_guess(k, sources))
        launch(select_kernel, (copies * rows, 1, 1), args, constants)
