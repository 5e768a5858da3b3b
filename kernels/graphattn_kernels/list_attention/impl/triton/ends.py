"""Where the strips of a causal graph's blocks stop reading their lists."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import chained, launch, wait_for_previous
from graphattn_kernels.list_attention.impl.triton.primitives import RUNTIME, targets_of
from graphattn_kernels.lists import SourceLists

__all__ = ["strip_ends"]

_ENTRIES = 512  # of a step


@triton.jit(do_not_specialize=RUNTIME)
def ends_kernel(
    LISTS, LENGTH, TARGET, ENDS, blocks, block, strips, room, num_targets, target_stride,
    M: tl.constexpr, N: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """ENDS ``[copies, blocks, strips]``: how many entries of an ascending list do not stand after the last of M
    targets. They are counted: a search would wait for one entry after another."""
    wait_for_previous(CHAINED)
    pid = tl.program_id(0)
    rows = blocks * strips
    copy = (pid // rows).to(tl.int64)
    row = pid % rows
    list_ = copy * blocks + row // strips
    first, local, valid = targets_of(TARGET, copy, target_stride, row // strips, block, row % strips, num_targets, M)
    last = tl.max(tl.where(valid, first + local, -1), 0)
    length = room
    if LENGTH is not None:
        length = tl.load(LENGTH + list_)
    count = tl.zeros([N], tl.int32)
    for start in range(0, length, N):
        at = start + tl.arange(0, N)
        source = tl.load(LISTS + list_ * room + at, mask=at < length, other=0)
        count += ((at < length) & (source <= last)).to(tl.int32)
    tl.store(ENDS + pid, tl.sum(count, 0))


def strip_ends(lists: SourceLists, rows: int, strips: int) -> Tensor:
    """int32 ``[copies, blocks, strips]``, for strips of ``rows`` targets."""
    index, length, target = lists[:3]
    copies, blocks, room = index.shape
    ends = index.new_empty((copies, blocks, strips), dtype=torch.int32)
    stride = target.shape[1] if target is not None and target.shape[0] > 1 else 0
    launch(
        ends_kernel,
        (copies * blocks * strips, 1, 1),
        (index, length, target, ends, blocks, lists.block, strips, room, lists.num_targets, stride),
        {"M": rows, "N": _ENTRIES, "CHAINED": chained(index.get_device()), "num_warps": 4, "num_stages": 1},
        (
            *(index.dtype, index.get_device(), None if length is None else length.dtype),
            *(None if target is None else target.dtype, rows),
        ),
    )
    return ends
