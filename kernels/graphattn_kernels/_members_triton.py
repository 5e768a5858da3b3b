"""Whose rows a Triton program has, in a batch of members.

Rows of each member are cut into chunks, and a *slot* is a chunk of a member. Slots of a member stand side by side, so
what programs write into slots can be added in order. Of a ragged batch, member g begins at slot
``ptr[g] // chunk + g``: this leaves at least one slot for each member and room for all of its chunks, and nobody has to
count them.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of device functions have no Python types.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["locate", "num_slots", "rows_of", "slots_of", "total"]


def num_slots(ptr: Tensor | None, members: int, size: int, chunk: int) -> int:
    """Slots of all members; ``size``: rows of a member, of all members where there is ``ptr``."""
    return members * (-(-size // chunk)) if ptr is None else size // chunk + members


@triton.jit
def locate(PTR, LENGTHS, slot, members, size, chunk):
    """The member of a slot, where its rows begin (in the batch entry, or in all), their number, the first row of the
    chunk, and the end of the rows that somebody has to write."""
    if PTR is None:
        per_member = (size + chunk - 1) // chunk
        member = slot // per_member
        length = size
        if LENGTHS is not None:
            length = tl.minimum(tl.load(LENGTHS + member), size).to(tl.int32)
        return member, tl.full([], 0, tl.int32), length, slot % per_member * chunk, size
    else:
        low = 0
        high = members - 1
        while low < high:
            middle = (low + high + 1) // 2
            after = tl.load(PTR + middle).to(tl.int32) // chunk + middle > slot
            low = tl.where(after, low, middle)
            high = tl.where(after, middle - 1, high)
        begin = tl.load(PTR + low).to(tl.int32)
        length = tl.load(PTR + low + 1).to(tl.int32) - begin
        return low, begin, length, (slot - (begin // chunk + low)) * chunk, length


@triton.jit
def rows_of(PTR, LENGTHS, member, size):
    """Where the rows of a member begin, and their number."""
    if PTR is None:
        length = size
        if LENGTHS is not None:
            length = tl.minimum(tl.load(LENGTHS + member), size).to(tl.int32)
        return tl.full([], 0, tl.int32), length
    else:
        begin = tl.load(PTR + member).to(tl.int32)
        return begin, tl.load(PTR + member + 1).to(tl.int32) - begin


@triton.jit
def slots_of(PTR, member, size, chunk):
    """The first slot of a member, and how many of its slots have rows."""
    if PTR is None:
        count = (size + chunk - 1) // chunk
        return member * count, count
    else:
        begin = tl.load(PTR + member).to(tl.int32)
        length = tl.load(PTR + member + 1).to(tl.int32) - begin
        return begin // chunk + member, (length + chunk - 1) // chunk


@triton.jit
def total(PARTIAL, first, count):
    """The sum of a member's numbers, in an order that depends on nothing else."""
    lane = tl.arange(0, 128)
    sums = tl.zeros([128], tl.float32)
    for some in range(0, count, 128):
        sums += tl.load(PARTIAL + first + some + lane, mask=some + lane < count, other=0.0)
    return tl.sum(sums, 0)
