"""What the kernels share: which block a program has, its targets, and the entries of its list."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["RUNTIME", "entries", "locate", "readable", "targets_of"]

# Whole numbers that Triton is not to compile for; of strides, kernels are told what they can use (ALIGN).
RUNTIME = (
    "blocks block strips room num_targets num_sources target_stride heads rows chunks ranks "
    "q_b q_t q_h k_b k_t k_h v_b v_t v_h"
).split()


@triton.jit
def locate(entry, heads, LEADING: tl.constexpr):
    """Batch entry, head and copy of the lists, of an entry of batch times heads."""
    batch = entry // heads
    head = entry % heads
    if LEADING == "":
        copy = tl.zeros_like(entry)
    elif LEADING == "h":
        copy = head
    elif LEADING == "b":
        copy = batch
    else:
        copy = entry
    return batch.to(tl.int64), head.to(tl.int64), copy.to(tl.int64)


@triton.jit
def targets_of(TARGET, copy, target_stride, block_id, block, strip, num_targets, M: tl.constexpr):
    """The targets of M places of a block, as a number and an offset for each, and whether there is one."""
    inside = strip * M + tl.arange(0, M)
    place = block_id * block + inside
    if TARGET is None:
        there = (inside < block) & (place < num_targets)
        return (block_id * block + strip * M).to(tl.int64), tl.arange(0, M), there
    else:
        token = tl.load(TARGET + copy * target_stride + place, mask=inside < block, other=-1)
        return tl.full([], 0, tl.int64), token.to(tl.int64), token >= 0


@triton.jit
def entries(LIST, at, end, room):
    """Sources at some places of a list (any number past its end), and which of them are there. Looking one up need not
    wait for the end."""
    return tl.load(LIST + at, mask=at < room, other=0), at < end


@triton.jit
def readable(target, source, READS: tl.constexpr):
    """Which pairs are edges, of those that the list has."""
    if READS == "until":
        return source <= target
    elif READS == "before":
        return source < target
    else:
        return source != target
