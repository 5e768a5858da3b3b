"""Triton: union-find over all images in one launch; runs first, then what joins them, then roots, ranks and labels.

After Playne & Hawick (IEEE TPDS 29(6), 2018) and Allegretti, Bolelli & Grana (IEEE TPDS 31(2), 2020): roots are the
smallest indices, joined by an integer ``atomic_min``, so the result does not depend on the order of the joins.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import guard, launch, next_power_of_2

__all__ = ["connected_components"]

_WIDTH = 128  # pixels of a program: one warp, so that nobody waits for another's chain
_RUNTIME = ["height", "width", "total"]  # whole numbers that Triton is not to compile for


@triton.jit
def _line(height, width, BX: tl.constexpr):
    """The row of a program in its image, the columns of its piece, and their pixels in the numbering of the batch."""
    pieces = (width + BX - 1) // BX
    row = tl.program_id(0) // pieces  # of all images
    x = tl.program_id(0) % pieces * BX + tl.arange(0, BX)
    return row % height, x, row * width + x


@triton.jit
def _bits(EDGES, pixel, y, x, width):
    """Edges of the pixels, 0 outside the image."""
    return tl.load(EDGES + pixel, mask=(y >= 0) & (x >= 0) & (x < width), other=0).to(tl.int32)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=_RUNTIME)
def run_kernel(EDGES, PARENT, height, width, LEFT: tl.constexpr, BX: tl.constexpr):
    """Every pixel of a run in a row (as far as a program sees it) has the first one as its parent."""
    y, x, pixel = _line(height, width, BX)
    edges = _bits(EDGES, pixel, y, x, width)
    begins = (edges & LEFT == 0) | (tl.arange(0, BX) == 0)
    parent = tl.associative_scan(tl.where(begins, pixel, 0), 0, _larger)
    tl.store(PARENT + pixel, parent, mask=x < width)


@triton.jit
def _union(PARENT, a, b, active):
    """Join the sets of the active pairs.

    What is read may be old: parents only ever become smaller and stay in the set, and ``atomic_min`` says what was
    there, so that an old root is found out, and followed. A path is halved with plain stores: they only replace a
    parent by a parent's parent.
    """
    while tl.max(active.to(tl.int32), 0) > 0:
        over_a = tl.load(PARENT + a, mask=active, other=0, cache_modifier=".cg")
        over_b = tl.load(PARENT + b, mask=active, other=0, cache_modifier=".cg")
        top_a = tl.load(PARENT + over_a, mask=active, other=0, cache_modifier=".cg")
        top_b = tl.load(PARENT + over_b, mask=active, other=0, cache_modifier=".cg")
        tl.store(PARENT + a, top_a, mask=active & (top_a != over_a))
        tl.store(PARENT + b, top_b, mask=active & (top_b != over_b))
        roots = active & (top_a == a) & (top_b == b)
        high, low = tl.maximum(a, b), tl.minimum(a, b)
        old = tl.atomic_min(PARENT + high, low, mask=roots & (high != low), sem="relaxed")
        a = tl.where(active, tl.where(roots, old, top_a), a)
        b = tl.where(active, tl.where(roots, low, top_b), b)
        # Done where both are one, or where the upper root has just been hung below the other.
        active = active & ((roots == 0) | ((high != low) & (old != high)))


@triton.jit(do_not_specialize=_RUNTIME)
def join_kernel(
    EDGES, PARENT, height, width,
    LEFT: tl.constexpr, UP: tl.constexpr, UP_LEFT: tl.constexpr, UP_RIGHT: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """Join pieces of a run, and runs with those above, but where a neighbouring pair joins the same two already."""
    y, x, pixel = _line(height, width, BX)
    edges = _bits(EDGES, pixel, y, x, width)
    if tl.max(edges, 0) > 0:
        # What this row's runs and the runs above join by themselves; all of it leads back to pairs further left.
        left = (edges & LEFT != 0) & (x > 0)
        above = _bits(EDGES, pixel - width, y - 1, x, width)
        up = (edges & UP != 0) & (y > 0)
        before = _bits(EDGES, pixel - 1, y, x - 1, width)
        up_before = (before & UP != 0) & (y > 0)
        above_left = above & LEFT != 0
        _union(PARENT, pixel, tl.maximum(pixel - 1, 0), left & (tl.arange(0, BX) == 0))
        _union(PARENT, pixel, tl.maximum(pixel - width, 0), up & ~(left & up_before & above_left))
        if UP_LEFT > 0:
            up_left = (edges & UP_LEFT != 0) & (y > 0) & (x > 0)
            known = (left & up_before) | (up & above_left)
            _union(PARENT, pixel, tl.maximum(pixel - width - 1, 0), up_left & ~known)
            up_right = (edges & UP_RIGHT != 0) & (y > 0) & (x < width - 1)
            above_after = _bits(EDGES, pixel - width + 1, y - 1, x + 1, width)
            known = up & (above_after & LEFT != 0)
            _union(PARENT, pixel, tl.maximum(pixel - width + 1, 0), up_right & ~known)


@triton.jit(do_not_specialize=_RUNTIME)
def root_kernel(EDGES, PARENT, IS_ROOT, total, B: tl.constexpr):
    """Every parent becomes the root; IS_ROOT (uint8) says which pixels are roots of more than background.

    All pixels do so at once and write what they find, so that chains shorten for all: a chain of n takes log n steps.
    """
    pixel = tl.program_id(0) * B + tl.arange(0, B)
    there = pixel < total
    parent = tl.load(PARENT + pixel, mask=there, other=0, cache_modifier=".cg")
    climbs = there
    while tl.max(climbs.to(tl.int32), 0) > 0:
        over = tl.load(PARENT + parent, mask=climbs, other=0, cache_modifier=".cg")
        climbs = climbs & (over != parent)
        tl.store(PARENT + pixel, over, mask=climbs)
        parent = tl.where(climbs, over, parent)
    edges = tl.load(EDGES + pixel, mask=there, other=0)
    tl.store(IS_ROOT + pixel, ((parent == pixel) & (edges != 0)).to(tl.uint8), mask=there)


@triton.jit(do_not_specialize=_RUNTIME)
def label_kernel(EDGES, PARENT, RANK, total, height, width, B: tl.constexpr):
    """PARENT becomes the label: the rank of the root among those of its image."""
    pixel = tl.program_id(0) * B + tl.arange(0, B)
    there = pixel < total
    edges = tl.load(EDGES + pixel, mask=there, other=0)
    image = height * width
    first = pixel // image * image  # of the pixel's image
    there = there & (edges != 0)
    root = tl.load(PARENT + pixel, mask=there, other=0)
    label = tl.load(RANK + root, mask=there, other=0)
    label -= tl.load(RANK + first - 1, mask=there & (first > 0), other=0)
    tl.store(PARENT + pixel, tl.where(there, label, 0), mask=pixel < total)


def connected_components(edges: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """See the API; ``edges [N, H, W]``."""
    edges = edges.contiguous()
    count, height, width = edges.shape
    parent = torch.empty_like(edges, dtype=torch.int32)
    total = edges.numel()
    if total == 0:
        return parent, parent.new_zeros(count)
    columns = min(_WIDTH, max(16, next_power_of_2(width)))
    lines = count * height * -(-width // columns)
    bits = {"LEFT": 8, "UP": 2, "UP_LEFT": 1, "UP_RIGHT": 4}
    if neighbours == 4:
        bits = {"LEFT": 2, "UP": 1, "UP_LEFT": 0, "UP_RIGHT": 0}
    warp = {"num_warps": 1, "num_stages": 1}
    with guard(edges):
        _run(run_kernel, lines, (edges, parent, height, width), {"LEFT": bits["LEFT"], "BX": columns, **warp})
        _run(join_kernel, lines, (edges, parent, height, width), {**bits, "BX": columns, **warp})
        is_root = torch.empty_like(edges)
        pieces = -(-total // _WIDTH)
        _run(root_kernel, pieces, (edges, parent, is_root, total), {"B": _WIDTH, **warp})
        rank = is_root.view(-1).cumsum(0, dtype=torch.int32)
        _run(label_kernel, pieces, (edges, parent, rank, total, height, width), {"B": _WIDTH, **warp})
    ends = rank.view(count, -1)[:, -1]
    return parent, ends.diff(prepend=ends.new_zeros(1))


def _run(kernel: Any, programs: int, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    launch(kernel, (programs, 1, 1), args, constants)
