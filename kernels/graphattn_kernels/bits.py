"""Packed masks: 32 columns in a word, the lowest bit first."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels.backends import choose
from graphattn_kernels.blocks import Blocks, BlockView

__all__ = ["WORD", "pack", "to_blocks", "unpack"]

WORD = 32
_MOST = 64  # sizes whose pointers are remembered


def pack(mask: Tensor) -> Tensor:
    """bool ``[..., columns]`` to int32 ``[..., ceil(columns / 32)]``: column j is bit ``j % 32`` of word ``j // 32``.

    Bits past the last column are 0.
    """
    mask = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % WORD))
    bit = torch.arange(WORD, dtype=torch.int32, device=mask.device)
    return (mask.unflatten(-1, (-1, WORD)).int() << bit).sum(-1, dtype=torch.int32)


def unpack(words: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`pack`."""
    bit = torch.arange(WORD, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> bit & 1).bool().flatten(-2)[..., :columns]


def to_blocks(words: Tensor, num_sources: int, block: int = 64, leading: str = "", *, causal: bool = False) -> Blocks:
    """Packed masks as tiles: every pair of blocks is one, with its bits, so nothing is counted and nothing waits.

    Args:
        words: int32 ``[copies, T, ceil(S / 32)]``.
        num_sources: S.
        block: Places in a block of either side: 32, 64 or 128.
        leading: Which of batch and heads the copies are for, ``""``, ``"h"``, ``"b"`` or ``"bh"`` (batch-major).
        causal: No target reads a later source, so that half of the tiles are left out; as many targets as sources.
    """
    copies, targets, _ = words.shape
    rows, columns = -(-targets // block), -(-num_sources // block)
    mask, turned = _cut(words, rows, columns, block)
    views = zip(_tiles(copies, rows, columns, causal, words.device), (mask, turned), strict=True)
    by_target, by_source = (BlockView(ptr, index, slot, bits) for (ptr, index, slot), bits in views)
    return Blocks(by_target, by_source, None, None, targets, num_sources, block, block, leading)


def _cut_implementation(words: Tensor, rows: int, columns: int, block: int) -> tuple[Tensor, Tensor]:
    if choose("auto", words.device) == "triton":
        from graphattn_kernels._bits_triton import cut

        return cut(words, rows, columns, block)
    copies, targets, width = words.shape
    wide = block // WORD
    words = torch.nn.functional.pad(words, (0, columns * wide - width, 0, rows * block - targets))
    mask = words.view(copies, rows, block, columns, wide).transpose(2, 3).reshape(-1, block, wide)
    return mask, pack(unpack(mask, block).mT)


def _cut_fake(words: Tensor, rows: int, columns: int, block: int) -> tuple[Tensor, Tensor]:
    shape = (words.shape[0] * rows * columns, block, block // WORD)
    return words.new_empty(shape), words.new_empty(shape)


_cut = register(
    "tiles_of_bits(Tensor words, SymInt rows, SymInt columns, int block) -> (Tensor, Tensor)",
    _cut_implementation,
    _cut_fake,
)

# The pointers of tiles, once for each size: the tile kernels know a schedule by its pointers.
_Pointers = tuple[Tensor, Tensor, Tensor]
_known: dict[tuple[int, int, int, bool, torch.device], tuple[_Pointers, _Pointers]] = {}


def _tiles(copies: int, rows: int, columns: int, causal: bool, device: torch.device) -> tuple[_Pointers, _Pointers]:
    """Pointers, indices and slots of a view by target and of one by source; slots number all pairs of blocks."""
    key = copies, rows, columns, causal, device
    known = _known.get(key)
    if known is not None:
        return known
    views = _lower_tiles(copies, rows, device) if causal else _every_tile(copies, rows, columns, device)
    # While a CUDA graph is captured, memory belongs to the graph; compiled code has no tensors of its own.
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if not (capturing or torch.compiler.is_compiling()):
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = views
        if not causal and choose("auto", device) == "triton":
            from graphattn_kernels.block_attention.impl.triton.launch import _CHUNK
            from graphattn_kernels.block_attention.impl.triton.plan import remember_even

            remember_even(views[0][0], _CHUNK, columns)
            remember_even(views[1][0], _CHUNK, rows)
    return views


def _every_tile(copies: int, rows: int, columns: int, device: torch.device) -> tuple[_Pointers, _Pointers]:
    slot = torch.arange(copies * rows * columns, dtype=torch.int32, device=device)
    turned = slot.view(copies, rows, columns).transpose(1, 2).reshape(-1)
    views = []
    for owners, others, order in ((rows, columns, slot), (columns, rows, turned)):
        ptr = torch.arange(copies * owners + 1, dtype=torch.int32, device=device) * others
        index = torch.arange(others, dtype=torch.int32, device=device).repeat(copies * owners)
        views.append((ptr, index, order))
    return views[0], views[1]


def _lower_tiles(copies: int, rows: int, device: torch.device) -> tuple[_Pointers, _Pointers]:
    copy = torch.arange(copies, dtype=torch.int32, device=device).unsqueeze(1)
    number = torch.arange(rows, dtype=torch.int32, device=device)
    count = rows * (rows + 1) // 2
    end = torch.full((1,), copies * count, dtype=torch.int32, device=device)
    views = []
    for by_target in (True, False):
        both = (torch.tril_indices if by_target else torch.triu_indices)(rows, rows, dtype=torch.int32, device=device)
        owner, other = both
        before = number * (number + 1) // 2 if by_target else number * (2 * rows + 1 - number) // 2
        ptr = torch.cat([(copy * count + before).flatten(), end])
        row, column = (owner, other) if by_target else (other, owner)
        slot = (copy * (rows * rows) + row * rows + column).flatten()
        views.append((ptr.int(), other.repeat(copies), slot.int()))
    return views[0], views[1]
