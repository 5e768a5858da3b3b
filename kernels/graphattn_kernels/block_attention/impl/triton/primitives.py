"""What the kernels share: which tile belongs to whom, rows of tokens, and the bits of a mask.

A program owns M places of one block for one batch entry and head, and walks the tiles of the block's row N places of
the other side at a time.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of kernels have no Python types; shapes stand in the docstrings.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "LOG2E",
    "RUNTIME",
    "SINGLE",
    "bounded",
    "dot",
    "edges",
    "load_parts",
    "load_rows",
    "locate",
    "origin",
    "parts",
    "program",
    "store_rows",
    "tile_at",
    "tokens",
    "words",
]

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)

# Whole numbers that Triton is not to compile for; of strides, kernels are told what they can use (ALIGN).
RUNTIME = (
    "num_runs num_parts num_hubs shared blocks target_blocks source_blocks heads num_tokens num_targets num_sources "
    "places target_places source_places q_b q_t q_h k_b k_t k_h v_b v_t v_h"
).split()

# Arrays whose entries are loaded one at a time, so that nobody cares where they begin: parts of a schedule are views.
SINGLE = "ROW BEGIN END HUB_ROW PART_PTR COUNT".split()


# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
_INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` in float32; ``acc`` may be None."""
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def program(num_runs, num_parts, shared, SPLIT: tl.constexpr):
    """The run, the entry among those that share the graph, and the M-row strip of the block of this program.

    Parts of long rows first, of all entries: they take longest. Then rows of one entry after the other, so that
    neighbours, which read the same keys, run together.
    """
    pid = tl.program_id(0)
    strip = pid % SPLIT
    pid = pid // SPLIT
    rest = pid - num_parts * shared
    rows = num_runs - num_parts
    if rest < 0:
        run = pid // shared
        entry = pid % shared
    else:
        run = num_parts + rest % rows
        entry = rest // rows
    return run, entry, strip


@triton.jit
def locate(row, entry, blocks, heads, LEADING: tl.constexpr):
    """The block, batch entry and head of a block row, for one of the entries that share the graph."""
    copy = row // blocks
    if LEADING == "":
        batch = entry // heads
        head = entry % heads
    elif LEADING == "h":
        batch = entry
        head = copy
    elif LEADING == "b":
        batch = copy
        head = entry
    else:
        batch = copy // heads
        head = copy % heads
    return row % blocks, batch, head


@triton.jit
def origin(batch, stride_b, head, stride_h, ALIGN: tl.constexpr):
    """Where the rows of a batch entry and head begin."""
    return tl.multiple_of(batch * stride_b + head * stride_h, ALIGN)


@triton.jit
def tokens(ORDER, begin, here, places):
    """The tokens at places ``begin + here``, as a number and an offset for each place, and whether there is one."""
    there = begin + here < places
    if ORDER is None:
        return begin.to(tl.int64), here, there
    else:
        token = tl.load(ORDER + begin + here, mask=there, other=-1)
        return tl.full([], 0, tl.int64), token.to(tl.int64), token >= 0


@triton.jit
def tile_at(INDEX, SLOT, step, last, BN: tl.constexpr, N: tl.constexpr):
    """The first place and the slot of a step of N places, BN // N steps to a tile; any place and -1 after the last.

    Kernels ask for it one step ahead: then loading keys waits for no index, and Triton can load them steps ahead.
    """
    there = step < last
    tile = step // (BN // N)
    index = tl.load(INDEX + tile, mask=there, other=0)
    return index * BN + step % (BN // N) * N, tl.load(SLOT + tile, mask=there, other=-1)


@triton.jit
def load_rows(
    X, base, first, local, stride, there, D: tl.constexpr, DP: tl.constexpr, ALIGN: tl.constexpr, EVEN: tl.constexpr
):
    """``[rows, DP]``: channels of one head of the tokens ``first + local``; 0 where there is no token or channel."""
    channel = tl.arange(0, DP)
    X += tl.multiple_of(base + first * stride, ALIGN)
    at = X + (tl.multiple_of(local * stride, ALIGN)[:, None] + channel[None, :])
    if EVEN:
        if D == DP:
            return tl.load(at)
        return tl.load(at, mask=(channel < D)[None, :], other=0.0)
    if D == DP:
        return tl.load(at, mask=there[:, None], other=0.0)
    return tl.load(at, mask=there[:, None] & (channel < D)[None, :], other=0.0)


@triton.jit
def parts(begin, end, shared, entry, B: tl.constexpr):
    """Where B parts of a long row stand, for one of the entries that share the graph, and which of them are its own."""
    run = begin + tl.arange(0, B)
    return (run * shared + entry).to(tl.int64), run < end


@triton.jit
def load_parts(PARTS, part, there, here, BM: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """``[parts, rows, DP]`` of ``[.., BM, D]``; 0 where there is no part or channel."""
    channel = tl.arange(0, DP)
    at = PARTS + (part * (BM * D))[:, None, None] + (here * D)[None, :, None] + channel[None, None, :]
    return tl.load(at, mask=there[:, None, None] & (channel < D)[None, None, :], other=0.0)


@triton.jit
def store_rows(X, base, local, stride, there, value, D: tl.constexpr, DP: tl.constexpr):
    """Store the channels of one head of the rows that hold a token."""
    channel = tl.arange(0, DP)
    at = X + base + (local * stride)[:, None] + channel[None, :]
    tl.store(at, value.to(X.dtype.element_ty), mask=there[:, None] & (channel < D)[None, :])


@triton.jit
def words(MASK, slot, here, start, BM: tl.constexpr, BN: tl.constexpr, N: tl.constexpr):
    """``[rows, N]``: for each pair of rows ``here`` of a block and N places from ``start`` on, the word with its bit.

    Any number where there is no mask (slot -1).
    """
    column = tl.arange(0, N)
    at = (slot.to(tl.int64) * BM + here) * (BN // 32) + start % BN // 32
    bits = tl.broadcast_to(tl.load(MASK + at, mask=at >= 0, other=0)[:, None], (here.shape[0], N))
    for word in tl.static_range(1, N // 32):
        more = tl.load(MASK + at + word, mask=at >= 0, other=0)
        bits = tl.where((column >= 32 * word)[None, :], more[:, None], bits)
    return bits


@triton.jit
def edges(bits, N: tl.constexpr):
    """``[rows, N]``: which pairs are edges, from :func:`words`.

    A shift by the column would cost five instructions for each pair. The accumulators of a matrix product lie so that
    bits 1 and 2 of the column come from the lane and all others from the register. So each word is shifted once, by
    those two bits, and then tested against a constant. (With any other layout the result is the same.)
    """
    column = tl.arange(0, N)
    return ((bits >> (column & 6)[None, :]) & (1 << (column & 25))[None, :]) != 0


@triton.jit
def bounded(score, bound):
    """Clamped scores, NaN kept."""
    return tl.where(score > bound, bound, tl.where(score < -bound, -bound, score))
