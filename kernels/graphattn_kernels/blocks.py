"""How a graph reaches the tile kernels: blocks of tokens, and for each pair of blocks that meet, a bitmask."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["BlockView", "Blocks", "from_mask", "to_mask"]

WORD = 32  # bits in one word of a mask


class BlockView(NamedTuple):
    """The tiles of a graph sorted by the block of one side, the *owner*.

    Seen from the targets, owners are blocks of targets and ``index`` names blocks of sources; seen from the sources,
    the reverse. Where copies of the graph differ (see :attr:`Blocks.leading`), they stand one after the other.
    """

    ptr: Tensor
    """int32 ``[copies * owner_blocks + 1]``: tiles of block row ``r`` stand at ``ptr[r]:ptr[r + 1]``."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """int32 ``[tiles]``: the block of the other side, ascending within a block row."""
    slot: Tensor
    """int32 ``[tiles]``: the row of ``mask`` with the bits of this tile; -1: every pair of the tile is an edge."""
    mask: Tensor
    """int32 ``[slots, owner block, other block // 32]``: bit ``j % 32`` of word ``j // 32`` of row ``i`` says whether
    owner ``i`` and other ``j`` of the tile share an edge."""

    @property
    def num_rows(self) -> int:
        """Number of block rows, those of every copy counted."""
        return self.ptr.shape[0] - 1

    @property
    def num_tiles(self) -> int:
        """Number of tiles, full ones included."""
        return self.index.shape[0]


class Blocks(NamedTuple):
    """A graph as the tile kernels see it: places in blocks, tiles where two blocks share an edge.

    A *place* holds a token or nobody. Each token stands at exactly one place of its side. An edge stands in one tile
    only, once: duplicate edges cannot be written down. A full tile (slot -1) has a token at each of its places.
    """

    by_target: BlockView
    by_source: BlockView
    """The same tiles; a row of these masks is a source."""
    target: Tensor | None
    """int32 ``[places]``: the target token at each place, -1 for nobody; ``None``: place ``i`` holds token ``i``."""
    source: Tensor | None
    """The same for sources."""
    num_targets: int
    num_sources: int
    block_targets: int
    """Places in a block of targets: 32, 64 or 128."""
    block_sources: int
    """Places in a block of sources: 32, 64 or 128."""
    leading: str
    """Which of batch and heads have a graph of their own: ``""``, ``"h"``, ``"b"`` or ``"bh"`` (batch-major)."""

    @property
    def T(self) -> Blocks:
        """Sources and targets exchanged, nothing copied."""
        return Blocks(
            self.by_source,
            self.by_target,
            self.source,
            self.target,
            self.num_sources,
            self.num_targets,
            self.block_sources,
            self.block_targets,
            self.leading,
        )

    @property
    def target_places(self) -> int:
        """Number of places for targets."""
        return self.num_targets if self.target is None else self.target.shape[0]

    @property
    def source_places(self) -> int:
        """Number of places for sources."""
        return self.num_sources if self.source is None else self.source.shape[0]

    @property
    def target_blocks(self) -> int:
        """Number of blocks of targets; the last may be ragged."""
        return -(-self.target_places // self.block_targets)

    @property
    def source_blocks(self) -> int:
        """Number of blocks of sources; the last may be ragged."""
        return -(-self.source_places // self.block_sources)

    def copies(self, batch: int, heads: int) -> int:
        """Number of graphs for these sizes."""
        return (batch if "b" in self.leading else 1) * (heads if "h" in self.leading else 1)


# The arguments that stand for Blocks in an operator's schema, in the order of `flat`.
SCHEMA = (
    "Tensor t_ptr, Tensor t_index, Tensor t_slot, Tensor t_mask, "
    "Tensor s_ptr, Tensor s_index, Tensor s_slot, Tensor s_mask, "
    "Tensor? target, Tensor? source, SymInt num_targets, SymInt num_sources, "
    "int block_targets, int block_sources, str leading"
)
NUM_ARGS = 15


def flat(blocks: Blocks) -> tuple[Any, ...]:
    """The fields of blocks in the order of :data:`SCHEMA`."""
    return (*blocks.by_target, *blocks.by_source, *blocks[2:])


def unflat(args: tuple[Any, ...]) -> Blocks:
    """The inverse of :func:`flat`; further arguments are ignored."""
    return Blocks(BlockView(*args[0:4]), BlockView(*args[4:8]), *args[8:NUM_ARGS])


def from_mask(
    mask: Tensor,
    block_targets: int = 64,
    block_sources: int = 64,
    *,
    target: Tensor | None = None,
    source: Tensor | None = None,
    leading: str = "",
) -> Blocks:
    """Blocks of a dense mask: a tile wherever two blocks share an edge.

    Args:
        mask: bool ``[copies, T, S]``: may target t read source s, in each copy of the graph.
        block_targets: Places in a block of targets: 32, 64 or 128.
        block_sources: Places in a block of sources: 32, 64 or 128.
        target: int32 ``[places]``: which target stands where, -1 for nobody; default: in order.
        source: The same for sources.
        leading: Which of batch and heads the copies are for, ``""``, ``"h"``, ``"b"`` or ``"bh"`` (batch-major).
    """
    _, targets, sources = mask.shape
    rows = _places(target, targets, block_targets, mask.device)
    columns = _places(source, sources, block_sources, mask.device)
    held = (rows >= 0).unsqueeze(1) & (columns >= 0)
    places = mask.index_select(1, rows.clamp(min=0)).index_select(2, columns.clamp(min=0)) & held
    return Blocks(
        _view(places, held, block_targets, block_sources),
        _view(places.transpose(1, 2), held.T, block_sources, block_targets),
        target,
        source,
        targets,
        sources,
        block_targets,
        block_sources,
        leading,
    )


def to_mask(blocks: Blocks) -> Tensor:
    """The inverse of :func:`from_mask`, from the tiles by target: bool ``[copies, T, S]``."""
    view, block, other = blocks.by_target, blocks.block_targets, blocks.block_sources
    row = torch.arange(view.num_rows, device=view.ptr.device)
    row = row.repeat_interleave(view.ptr.diff(), output_size=view.num_tiles)
    tiles = view.mask.new_zeros((view.num_rows, blocks.source_blocks, block, other), dtype=torch.bool)
    tiles[row, view.index.long()] = tile_bits(view, block, other)
    rows, columns = blocks.target_blocks, blocks.source_blocks
    copies = view.num_rows // rows if rows else 1
    tiles = tiles.view(copies, rows, columns, block, other).transpose(2, 3)
    mask = tiles.reshape(copies, rows * block, columns * other)
    return _of_tokens(_of_tokens(mask, 1, blocks.target, blocks.num_targets), 2, blocks.source, blocks.num_sources)


def tile_bits(view: BlockView, block: int, other: int) -> Tensor:
    """The pairs of every tile of a view: bool ``[tiles, owner block, other block]``."""
    shift = torch.arange(WORD, dtype=torch.int32, device=view.mask.device)
    bits = (view.mask.unsqueeze(-1) >> shift & 1).bool().view(-1, block, other)
    bits = torch.cat([bits, bits.new_ones((1, block, other))])
    return bits.index_select(0, torch.where(view.slot < 0, bits.shape[0] - 1, view.slot))


def _places(order: Tensor | None, size: int, block: int, device: torch.device) -> Tensor:
    """The token at each place of whole blocks, -1 for nobody."""
    tokens = torch.arange(size, device=device) if order is None else order.long()
    return torch.cat([tokens, tokens.new_full((-tokens.shape[0] % block,), -1)])


def _view(places: Tensor, held: Tensor, block: int, other: int) -> BlockView:
    """Tiles of ``places [copies, P, Q]``; ``held [P, Q]``: both places hold a token."""
    copies, rows, columns = places.shape[0], places.shape[1] // block, places.shape[2] // other
    tiles = places.reshape(copies, rows, block, columns, other).transpose(2, 3)
    held = held.reshape(rows, block, columns, other).transpose(1, 2)
    there = tiles.flatten(3).any(-1)
    partial = (~(tiles & held).flatten(3).all(-1))[there]
    count = there.sum(-1).flatten()
    word = tiles[there][partial].unflatten(-1, (-1, WORD)).long()
    word = (word << torch.arange(WORD, device=word.device)).sum(-1)
    return BlockView(
        torch.cat([count.new_zeros(1), count.cumsum(0)]).int(),
        there.nonzero()[:, 2].int(),
        torch.where(partial, partial.cumsum(0) - 1, -1).int(),
        torch.where(word < 2 ** (WORD - 1), word, word - 2**WORD).int(),
    )


def _of_tokens(mask: Tensor, dim: int, order: Tensor | None, size: int) -> Tensor:
    """From places to tokens along one axis."""
    if order is None:
        return mask.narrow(dim, 0, size)
    place = torch.empty(size, dtype=torch.long, device=order.device)
    holders = (order >= 0).nonzero().squeeze(1)
    place[order.index_select(0, holders).long()] = holders
    return mask.index_select(dim, place)
