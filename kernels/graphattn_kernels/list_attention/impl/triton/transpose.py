"""Which entries of which lists name a source, in the order of the lists, without a sort."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn_kernels._triton import chained, launch, wait_for_previous
from graphattn_kernels.lists import SourceLists

__all__ = ["transpose"]

_FILL = 1024  # sources of a step that writes
_RANK, _BLOCKS = 64, 32  # sources of a program that counts, and lists that it looks at in a step


@triton.jit(do_not_specialize=["room", "num_sources"])
def place_kernel(LISTS, LENGTH, PLACE, room, num_sources, N: tl.constexpr, CHAINED: tl.constexpr):
    """PLACE ``[copies * blocks, S]``: where a source stands in a list, or -1. A program has a list."""
    wait_for_previous(CHAINED)
    list_ = tl.program_id(0).to(tl.int64)
    here = tl.arange(0, N)
    for start in range(0, num_sources, N):
        at = start + here
        tl.store(PLACE + list_ * num_sources + at, tl.full([N], -1, PLACE.dtype.element_ty), mask=at < num_sources)
    tl.debug_barrier()  # what was just written is written again
    end = room
    if LENGTH is not None:
        end = tl.load(LENGTH + list_)
    for start in range(0, end, N):
        at = start + here
        source = tl.load(LISTS + list_ * room + at, mask=at < end, other=0)
        tl.store(PLACE + list_ * num_sources + source, at.to(PLACE.dtype.element_ty), mask=at < end)


@triton.jit(do_not_specialize=["blocks", "room", "ranks", "num_sources", "chunks"])
def rank_kernel(
    PLACE, COUNT, ENTRY, blocks, room, ranks, num_sources, chunks, N: tl.constexpr, B: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """COUNT ``[copies, S]`` and ENTRY ``[copies, ranks, S]``, numbers ``block * room + place``, for N sources of a
    program, B lists at a time: a step waits for its loads only once."""
    wait_for_previous(CHAINED)
    pid = tl.program_id(0)
    copy = (pid // chunks).to(tl.int64)
    source = pid % chunks * N + tl.arange(0, N)
    there = source < num_sources
    count = tl.zeros([N], tl.int32)
    PLACE += copy * blocks * num_sources
    ENTRY += copy * ranks * num_sources
    for start in range(0, blocks, B):
        block = start + tl.arange(0, B)
        at = PLACE + (block.to(tl.int64) * num_sources)[:, None] + source[None, :]
        place = tl.load(at, mask=(block < blocks)[:, None] & there[None, :], other=-1).to(tl.int32)
        hit = place >= 0
        rank = count[None, :] + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(ENTRY + rank.to(tl.int64) * num_sources + source[None, :], (block * room)[:, None] + place, mask=hit)
        count += tl.sum(hit.to(tl.int32), 0)
    tl.store(COUNT + copy * num_sources + source, count, mask=there)


def transpose(lists: SourceLists) -> tuple[Tensor, Tensor]:
    """For each source, how many entries name it, int32 ``[copies, S]``, and which, int32 ``[copies, ranks, S]``."""
    copies, blocks, room = lists.index.shape
    sources, ranks = lists.num_sources, 1 if lists.disjoint else blocks
    small = torch.int16 if room < 2**15 else torch.int32
    # The arrays of lists, and what is allocated here, begin at multiples of 16 bytes.
    device = lists.index.get_device()
    kind = lists.index.dtype, device, None if lists.length is None else lists.length.dtype, small
    place = lists.index.new_empty((copies, blocks, sources), dtype=small)
    launch(
        place_kernel,
        (copies * blocks, 1, 1),
        (lists.index, lists.length, place, room, sources),
        {"N": _FILL, "CHAINED": chained(device), "num_warps": 4, "num_stages": 1},
        kind,
    )
    count = lists.index.new_empty((copies, sources), dtype=torch.int32)
    entry = lists.index.new_empty((copies, ranks, sources), dtype=torch.int32)
    chunks = -(-sources // _RANK)
    launch(
        rank_kernel,
        (copies * chunks, 1, 1),
        (place, count, entry, blocks, room, ranks, sources, chunks),
        {"N": _RANK, "B": _BLOCKS, "CHAINED": chained(device), "num_warps": 2, "num_stages": 1},
        kind,
    )
    return count, entry
