"""Packed masks cut into tiles, and the tiles turned, in one launch."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import aligned, guard, launch

__all__ = ["cut"]


@triton.jit(do_not_specialize=["targets", "words", "rows", "columns"])
def cut_kernel(WORDS, MASK, TURNED, targets, words, rows, columns, BLOCK: tl.constexpr):
    """WORDS ``[copies, T, words]`` into MASK and TURNED ``[copies * rows * columns, BLOCK, BLOCK // 32]``."""
    slot = tl.program_id(0)
    wide: tl.constexpr = BLOCK // 32
    column = slot % columns
    row = slot // columns % rows
    copy = (slot // (columns * rows)).to(tl.int64)
    group = tl.arange(0, wide)
    lane = tl.arange(0, 32)
    target = row * BLOCK + group[:, None] * 32 + lane[None, :]  # [groups of 32 targets, target]
    at = MASK + slot.to(tl.int64) * (BLOCK * wide)
    turned = TURNED + slot.to(tl.int64) * (BLOCK * wide)
    for word in tl.static_range(wide):
        here = column * wide + word
        there = (target < targets) & (here < words)
        bits = tl.load(WORDS + (copy * targets + target) * words + here, mask=there, other=0)
        tl.store(at + (group[:, None] * 32 + lane[None, :]) * wide + word, bits)
        each = (bits[:, :, None] >> lane[None, None, :]) & 1  # [group, target, source]
        back = tl.sum(each << lane[None, :, None], 1)  # [group, source]
        tl.store(turned + (word * 32 + lane[None, :]) * wide + group[:, None], back)


def cut(words: Tensor, rows: int, columns: int, block: int) -> tuple[Tensor, Tensor]:
    """Masks of all tiles ``[copies * rows * columns, block, block // 32]``, and the same turned."""
    copies, targets, width = words.shape
    slots = copies * rows * columns
    mask = words.new_empty((slots, block, block // 32))
    turned = torch.empty_like(mask)
    with guard(words):
        args = (aligned(words.contiguous()), mask, turned, targets, width, rows, columns)
        launch(cut_kernel, (slots, 1, 1), args, {"BLOCK": block, "num_warps": 1, "num_stages": 1})
    return mask, turned
