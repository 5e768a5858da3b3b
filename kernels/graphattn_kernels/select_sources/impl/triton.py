"""One program has a row of scores in its registers, as float32: it finds the k-th largest, and the places of those that
are chosen by a running sum. Of equal scores the lowest sources are taken; lists ascend.

A thread has one run of up to 32 neighbours. What is known of a run is a number or a word of bits: how many of it reach
either end of the search, which are chosen, where its first entry goes. What is left for a single score is a comparison
and a sum, for each step of the search and once more in the end; keys are made of thresholds alone.
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

from graphattn_kernels._triton import aligned, chained, guard, launch, next_power_of_2, wait_for_previous

__all__ = ["select_bits", "select_lists"]

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
def _moments(score, n):
    """How many scores are above -inf, of which each run has n, their sum, and that of their squares (float32: a guess
    rests on them)."""
    finite = tl.where(_above(score, float("-inf")), score, 0.0)
    return tl.reduce((n, tl.sum(finite, 1), tl.sum(finite * finite, 1)), 0, _add3)


@triton.jit
def _reach(score, edge):
    """How many scores of each run are larger (float32, which counts in two instructions a score)."""
    return tl.sum(_above(score, edge).to(tl.float32), 1)


@triton.jit
def _search(score, k, deviate, density, SPARE: tl.constexpr):
    """``low``, ``high``, how many of each run reach either, and how many in all reach ``high``: k scores or more reach
    ``low`` (or it is the lowest of all), no more than k reach ``high``, and either k reach ``low``, or no key is
    between the two.

    The first guess is that scores are normally distributed, the second goes along the slope there; then come lines
    between the two ends, and after 5 steps halves: 3 steps where the guess is good, never many more than bits.
    """
    low, high = -(0x7F800000 >> SPARE), (0x7F800000 >> SPARE) + 2
    of_low = _reach(score, float("-inf"))
    of_high = tl.zeros_like(of_low)
    n, total, square = _moments(score, of_low)
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
        reach = _reach(score, edge)
        count = tl.sum(reach.to(tl.int32), 0)
        enough = count >= k
        low = tl.where(enough, trial, low)
        of_low = tl.where(enough, reach, of_low)
        at_low = tl.where(enough, count, at_low)
        from_ = tl.where(enough, edge, from_)
        high = tl.where(enough, high, trial)
        of_high = tl.where(enough, of_high, reach)
        at_high = tl.where(enough, at_high, count)
        to = tl.where(enough, to, edge)
        along = edge + (count - k).to(tl.float32) * each * tl.where(step == 0, 1.0, 2.0)
        line = from_ + (at_low - k + 0.5) / (at_low - at_high) * (to - from_)
        guess = tl.where((from_ > float("-inf")) & (to < float("inf")), line, along)
        step += 1
    return low, high, of_low, of_high, at_high


@triton.jit
def _word(chosen):
    """A run's choice as bits: entry j is bit j."""
    return tl.sum(chosen.to(tl.int32) << tl.arange(0, chosen.shape[1])[None, :], 1)


@triton.jit
def _top(score, forced, k, deviate, density, SPARE: tl.constexpr):
    """Of each run: the k best scores, of equal ones the lowest, and what is forced, as bits; how many they are; how
    many come before."""
    low, high, of_low, of_high, at_high = _search(score, k, deviate, density, SPARE)
    if low > (0x7F800000 >> SPARE):  # so many are NaN
        score = tl.where(score == score, float("-inf"), float("inf"))
        low -= 1
        high = low + 1
        of_low = _reach(score, 0.0)
    below, upper = _edge(low, SPARE), _edge(high, SPARE)
    better = of_high.to(tl.int32)
    equal = of_low.to(tl.int32) - better
    if forced is not None:
        better += tl.sum(forced.to(tl.int32), 1)
    number = better | (equal << 16)
    before = tl.cumsum(number, 0) - number
    missing = k - at_high  # so many equals are taken
    equals = (before >> 16) & 0xFFFF
    take = tl.minimum(tl.maximum(missing - equals, 0), equal)
    some = tl.where(take < equal, take, 0)
    word = _word(_above(score, tl.where(take == equal, below, upper)[:, None]))
    most = tl.max(some, 0)
    if most > 0:  # the last of the k has an equal in its run
        alike = _word(_above(score, below)) & ~word
        for i in range(most):
            lowest = tl.where(i < some, alike & -alike, 0)
            word |= lowest
            alike ^= lowest
    if forced is not None:
        word |= _word(forced)
    return word, better + take, (before & 0xFFFF) + tl.minimum(equals, missing)


@triton.jit
def _load_runs(X, first, size, other, RUN: tl.constexpr, PIECE: tl.constexpr):
    """``X[first : first + RUN]``, a run for a thread, loaded in pieces that lie together: ``[runs, RUN]``."""
    if RUN == PIECE:
        at = first[:, None] + tl.arange(0, PIECE)[None, :]
        return tl.load(X + at, mask=at < size, other=other)
    else:
        left = _load_runs(X, first, size, other, RUN // 2, PIECE)
        right = _load_runs(X, first + RUN // 2, size, other, RUN // 2, PIECE)
        return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (first.shape[0], RUN))


@triton.jit
def _store_list(INDEX, word, place, first, count, room):
    """Store the sources of the bits of each run at their places, those that there is room for."""
    for _ in range(tl.max(count, 0)):
        lowest = word & -word
        bit = (lowest.to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        tl.store(INDEX + place, first + bit, mask=(word != 0) & (place < room))
        word ^= lowest
        place += 1


@triton.jit(do_not_specialize=_RUNTIME)
def select_kernel(
    SCORES, ALWAYS, FULL, WORDS, INDEX, LENGTH, rows, sources, words, k, room, at, own, deviate, density,
    P: tl.constexpr, RUN: tl.constexpr, TOP: tl.constexpr, OWN: tl.constexpr, SPARE: tl.constexpr, ALIGN: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """SCORES ``[copies * rows, S]``; WORDS ``[copies * rows, words]``, or INDEX ``[.., room]`` and LENGTH. A program
    has a row, P / RUN runs."""
    wait_for_previous(CHAINED)
    FORCED: tl.constexpr = (ALWAYS is not None) or OWN
    PIECE: tl.constexpr = min(RUN, ALIGN)
    number = tl.program_id(0).to(tl.int64)
    row = (number % rows).to(tl.int32)
    sources = sources // ALIGN * ALIGN  # as it is: now Triton knows how many can be loaded at once
    run = tl.arange(0, P // RUN)
    first = run * RUN
    column = first[:, None] + tl.arange(0, RUN)[None, :]
    there = column < sources
    forced = column < 0
    if ALWAYS is not None:
        forced = _load_runs(ALWAYS, first, sources, 0, RUN, PIECE) != 0
    if OWN:
        start = tl.minimum(row.to(tl.int64) * own, sources).to(tl.int32)
        forced = there & (forced | ((column >= start) & (column < start + own)))
    if TOP:
        score = _wide(_load_runs(SCORES + number * sources, first, sources, float("-inf"), RUN, PIECE), SPARE)
        if FORCED:
            score = tl.where(forced, float("-inf"), score)
        word, count, place = _top(score, forced if FORCED else None, k, deviate, density, SPARE)
    else:
        score = _wide(_load_runs(SCORES + number * sources, first, sources, 0, RUN, PIECE), SPARE)
        word = _word((there & (score > at)) | forced)
    if WORDS is not None:
        if FULL is not None:
            word = tl.where(tl.load(FULL + row) != 0, _word(there), word)
        parts = tl.reshape(word, (P // 32, 32 // RUN)) << (tl.arange(0, 32 // RUN) * RUN)[None, :]
        place = tl.arange(0, P // 32)
        tl.store(WORDS + number * words + place, tl.sum(parts, 1), mask=place < words)
    else:
        length = tl.minimum(tl.max(place + count, 0), room)
        _store_list(INDEX + number * room, word, place, first, count, room)
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


def _share(width: int, rows: int, align: int) -> tuple[int, int]:
    """Warps of a row, and sources of a run: 32; where most of the device is idle anyway, as in a draw, 16."""
    warps = min(max(width // (1024 if rows > 64 else 512), 1), 32)
    # What does not lie on 4 numbers is loaded one by one, and neighbours of short runs from one line of the cache.
    return warps, min(max(width // (32 * warps), 4), 32 if align >= 4 else 8)


def _launch(
    scores: Tensor, k: int, at: float, always: Tensor | None, full: Tensor | None, own: int, words: int, room: int,
    outs: tuple[Any, ...],
) -> None:  # fmt: skip
    with guard(scores):
        scores = aligned(scores.contiguous())
        copies, rows, sources = scores.shape
        masks = [None if x is None else aligned(x.contiguous().view(torch.uint8)) for x in (always, full)]
        width = max(64, next_power_of_2(max(sources, 1)))
        align = math.gcd(sources, 16 // scores.element_size()) if sources else 1
        warps, run = _share(width, copies * rows, align)
        constants = {
            "P": width,
            "RUN": run,
            "TOP": k >= 0,
            "OWN": own > 0,
            "SPARE": _SPARE.get(scores.dtype, 0),
            "ALIGN": align,
            "CHAINED": chained(scores.get_device()),
            "num_warps": warps,
            "num_stages": 1,
            "maxnreg": 64,  # 32 warps a multiprocessor, and nothing is spilled
        }
        k = min(max(k, 0), sources)
        args = (scores, *masks, *outs, rows, sources, words, k, room, float(at), min(own, sources), *_guess(k, sources))
        launch(select_kernel, (copies * rows, 1, 1), args, constants)
