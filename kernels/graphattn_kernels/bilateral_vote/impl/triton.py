"""Triton: every number of the cube comes from memory once; its second reading, by the neighbour, hits a cache."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._grid import OFFSETS
from graphattn_kernels._triton import aligned, guard, launch, next_power_of_2

__all__ = ["agreed_edges", "backward", "forward"]

_LOG2_E = tl.constexpr(1.4426950408889634)
_NOBODY = tl.constexpr(float("-inf"))  # the logit of a neighbour outside the image
_RUNTIME = ["height", "runs"]  # whole numbers that Triton is not to compile for


@triton.jit
def _tile(height, width, BY: tl.constexpr, BJ: tl.constexpr, RUN: tl.constexpr):
    """The image of a program; the rows ``[BY, 1, 1]``, where runs start ``[1, BJ, 1]`` and columns ``[1, BJ, RUN]``."""
    across, down = (width + BJ * RUN - 1) // (BJ * RUN), (height + BY - 1) // BY
    place = tl.program_id(0)
    image = place // (across * down)
    place = place % (across * down)
    y = place // across * BY + tl.arange(0, BY)
    start = (place % across * BJ + tl.arange(0, BJ)) * RUN
    return image.to(tl.int64), y[:, None, None], start[None, :, None], start[None, :, None] + tl.arange(0, RUN)


@triton.jit
def _read(PLANE, y, x, height, width, other):
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return tl.load(PLANE + y * width + x, mask=inside, other=other)


@triton.jit
def _after(run, edge):
    """``run [.., .., RUN]`` one place further, ``edge [.., .., 1]`` at its end: numbers change names, not threads."""
    if run.shape[2] == 1:
        return edge
    else:
        even, odd = tl.split(tl.reshape(run, [run.shape[0], run.shape[1], run.shape[2] // 2, 2]))
        return tl.reshape(tl.join(odd, _after(even, edge)), run.shape)


@triton.jit
def _before(run, edge):
    """``run`` one place back, ``edge`` at its beginning."""
    if run.shape[2] == 1:
        return edge
    else:
        even, odd = tl.split(tl.reshape(run, [run.shape[0], run.shape[1], run.shape[2] // 2, 2]))
        return tl.reshape(tl.join(_before(odd, edge), even), run.shape)


@triton.constexpr_function
def _offset(c, neighbours):
    """(down, right) of the neighbour of channel c."""
    return OFFSETS[neighbours][c]


@triton.jit
def _neighbour(PLANE, y, start, x, height, width, C: tl.constexpr, K: tl.constexpr, other):
    """What the neighbour of channel C has, by aligned loads and one more for each run."""
    DOWN: tl.constexpr = _offset(C, K)[0]
    RIGHT: tl.constexpr = _offset(C, K)[1]
    run = _read(PLANE, y + DOWN, x, height, width, other)
    if RIGHT == 1:
        run = _after(run, _read(PLANE, y + DOWN, start + x.shape[2], height, width, other))
    elif RIGHT == -1:
        run = _before(run, _read(PLANE, y + DOWN, start - 1, height, width, other))
    return run


@triton.jit
def _ends(CUBE, y, start, x, height, width, C: tl.constexpr, K: tl.constexpr, other):
    """What a pixel says of its neighbour of channel C, and what that says of it."""
    size = height.to(tl.int64) * width
    mine = _read(CUBE + C * size, y, x, height, width, other)
    theirs = _neighbour(CUBE + (K - 1 - C) * size, y, start, x, height, width, C, K, other)
    return mine.to(tl.float32), theirs.to(tl.float32)


@triton.jit
def _inverse(x):
    """One over the probability of a logit. Two of them make a vote with one division, and are compared without any."""
    return 1.0 + tl.exp2(x * -_LOG2_E)


@triton.jit
def _reciprocal(x):
    """1 / x for x >= 1, in two instructions: Triton's division takes eight, to be right for the tiniest x as well."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit(do_not_specialize=_RUNTIME)
def vote_kernel(
    CUBE, OUT, CHOSEN, height, runs,
    K: tl.constexpr, RANK: tl.constexpr, LOGITS: tl.constexpr, BY: tl.constexpr, BJ: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """``[N, K, H, W]`` to OUT ``[N, H, W]`` and CHOSEN (uint8; none for the mean)."""
    width = runs * RUN
    image, y, start, x = _tile(height, width, BY, BJ, RUN)
    size = height.to(tl.int64) * width
    INVERSE: tl.constexpr = LOGITS and RANK != 0  # compare the inverses of votes
    NAN: tl.constexpr = tl.PropagateNan.ALL if RANK == 1 else tl.PropagateNan.NONE
    planes = CUBE + image * K * size
    for i in tl.static_range(K):
        # The largest is the first of its equals, the smallest the last; NaN counts as the largest.
        mine, theirs = _ends(
            planes, y, start, x, height, width, i if RANK == 1 else K - 1 - i, K, _NOBODY if LOGITS else 0.0
        )
        if LOGITS:
            vote = _inverse(mine) * _inverse(theirs)
            if not INVERSE:
                vote = _reciprocal(vote)
        else:
            vote = mine * theirs
        if i == 0:
            best = vote
            chosen = tl.zeros(vote.shape, tl.int32)
        elif RANK == 0:
            best += vote
        else:
            before = best
            best = tl.minimum(best, vote, NAN) if INVERSE == (RANK == 1) else tl.maximum(best, vote, NAN)
            changed = best.to(tl.int32, bitcast=True) != before.to(tl.int32, bitcast=True)  # NaN is NaN, as bits
            chosen = tl.where(changed, i, chosen)
    at, there = image * size + y * width + x, (y < height) & (x < width)
    if RANK == 0:
        best *= 1.0 / K
    else:
        if INVERSE:
            best = _reciprocal(best)
        if RANK != 1:
            chosen = K - 1 - chosen
        tl.store(CHOSEN + at, chosen.to(tl.uint8), mask=there)
    tl.store(OUT + at, best.to(OUT.dtype.element_ty), mask=there)


@triton.jit
def _slopes(
    CUBE, CHOSEN, GRAD, y, start, x, height, width,
    C: tl.constexpr, K: tl.constexpr, RANK: tl.constexpr, LOGITS: tl.constexpr,
):  # fmt: skip
    """Gradient of what a pixel says of its neighbour of channel C, and of what that says of it: the pair's vote counts
    at either end where it was chosen there."""
    mine, theirs = _ends(CUBE, y, start, x, height, width, C, K, _NOBODY if LOGITS else 0.0)
    slope = _read(GRAD, y, x, height, width, 0.0).to(tl.float32)
    other = _neighbour(GRAD, y, start, x, height, width, C, K, 0.0).to(tl.float32)
    if RANK == 0:
        slope = (slope + other) * (1.0 / K)
    else:
        chosen = _read(CHOSEN, y, x, height, width, 255)
        other_chosen = _neighbour(CHOSEN, y, start, x, height, width, C, K, 255)
        slope = tl.where(chosen == C, slope, 0.0) + tl.where(other_chosen == K - 1 - C, other, 0.0)
    if LOGITS:
        p, q = _reciprocal(_inverse(mine)), _reciprocal(_inverse(theirs))
        slope *= p * q
        return slope - slope * p, slope - slope * q
    else:
        return slope * theirs, slope * mine


@triton.jit(do_not_specialize=_RUNTIME)
def grad_kernel(
    CUBE, CHOSEN, GRAD, OUT, height, runs,
    K: tl.constexpr, RANK: tl.constexpr, LOGITS: tl.constexpr, BY: tl.constexpr, BJ: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """GRAD ``[N, H, W]`` to OUT ``[N, K, H, W]``.

    A program sees to both ends of the pairs of its pixels with the K / 2 neighbours that follow. The other ends that it
    writes are in its own columns, in the row of the neighbour (below the last row: in the first, which nobody follows).
    """
    width = runs * RUN
    image, y, start, x = _tile(height, width, BY, BJ, RUN)
    size = height.to(tl.int64) * width
    CUBE += image * K * size
    OUT += image * K * size
    GRAD += image * size
    if RANK != 0:
        CHOSEN += image * size
    there = (y < height) & (x < width)
    for c in tl.static_range(K // 2, K):
        mine, theirs = _slopes(CUBE, CHOSEN, GRAD, y, start, x, height, width, c, K, RANK, LOGITS)
        tl.store(OUT + c * size + y * width + x, mine.to(OUT.dtype.element_ty), mask=there)
        if _offset(c, K)[1] == 1:
            edge = start - 1
            theirs = _before(theirs, _slopes(CUBE, CHOSEN, GRAD, y, edge, edge, height, width, c, K, RANK, LOGITS)[1])
        elif _offset(c, K)[1] == -1:
            edge = start + RUN
            theirs = _after(theirs, _slopes(CUBE, CHOSEN, GRAD, y, edge, edge, height, width, c, K, RANK, LOGITS)[1])
        row = y + _offset(c, K)[0]
        theirs = tl.where(row < height, theirs, 0.0)
        row = tl.where(row < height, row, 0)
        tl.store(OUT + (K - 1 - c) * size + row * width + x, theirs.to(OUT.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=[*_RUNTIME, "threshold"])
def agreed_kernel(
    CUBE, OUT, height, runs, threshold, K: tl.constexpr, BY: tl.constexpr, BJ: tl.constexpr, RUN: tl.constexpr
):
    """``[N, K, H, W]`` to uint8 ``[N, H, W]``, bit c for channel c."""
    width = runs * RUN
    image, y, start, x = _tile(height, width, BY, BJ, RUN)
    size = height.to(tl.int64) * width
    bits = tl.zeros([BY, BJ, RUN], tl.int32)
    for c in tl.static_range(K):
        mine, theirs = _ends(CUBE + image * K * size, y, start, x, height, width, c, K, _NOBODY)
        bits += tl.where((mine > threshold) & (theirs > threshold), 1 << c, 0)
    tl.store(OUT + image * size + y * width + x, bits.to(tl.uint8), mask=(y < height) & (x < width))


def forward(cube: Tensor, rank: int, logits: bool) -> tuple[Tensor, Tensor | None]:
    """See the API. Returns the map, and the channel whose vote it is (``None`` for the mean)."""
    cube = aligned(cube.contiguous())
    out = cube.new_empty((cube.shape[0], *cube.shape[2:]))
    chosen = torch.empty_like(out, dtype=torch.uint8) if rank else None
    _run(vote_kernel, cube, (cube, out, chosen), (), {"RANK": min(rank, 2), "LOGITS": logits})
    return out, chosen


def backward(cube: Tensor, rank: int, logits: bool, chosen: Tensor | None, grad: Tensor) -> Tensor:
    """Gradient of the cube."""
    cube, grad = aligned(cube.contiguous()), aligned(grad.contiguous())
    out = torch.empty_like(cube)
    _run(grad_kernel, cube, (cube, chosen, grad, out), (), {"RANK": min(rank, 2), "LOGITS": logits})
    return out


def agreed_edges(cube: Tensor, threshold: float) -> Tensor:
    """See the API; ``threshold`` in the unit of the cube."""
    cube = aligned(cube.contiguous())
    out = cube.new_empty((cube.shape[0], *cube.shape[2:]), dtype=torch.uint8)
    _run(agreed_kernel, cube, (cube, out), (threshold,), {})
    return out


def _tile_of(width: int, itemsize: int) -> tuple[int, int, int]:
    """Rows of a tile, runs in each, and columns of a run: what 16 bytes hold, where every row begins at a multiple."""
    run = math.gcd(width, 16 // itemsize)
    across = min(32, next_power_of_2(width // run))  # a warp has one row of a wide image, several of a narrow one
    return max(128, 256 // run) // across, across, run


def _run(kernel: Any, cube: Tensor, tensors: tuple[Any, ...], numbers: tuple[float, ...], kind: dict[str, Any]) -> None:
    count, neighbours, height, width = cube.shape
    if cube.numel() == 0:
        return
    rows, across, run = _tile_of(width, cube.element_size())
    programs = count * -(-width // (across * run)) * -(-height // rows)
    constants = {"K": neighbours, **kind, "BY": rows, "BJ": across, "RUN": run, "num_warps": 4, "num_stages": 1}
    with guard(cube):
        launch(kernel, (programs, 1, 1), (*tensors, height, width // run, *numbers), constants)
