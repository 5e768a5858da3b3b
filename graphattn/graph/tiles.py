"""Which tiles a graph has, and their bits: from a list of edges, or from a rule that is never listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph.pattern import Pattern
from graphattn.graph.token_graph import TokenGraph

__all__ = ["DuplicateEdgesError", "Side", "Tiles", "pack", "tiles_of_edges", "tiles_of_rule", "unpack"]

_WORD = 32
_TILES = 1 << 22  # tiles about which a rule is asked at once: a few tensors of this many numbers
_PAIRS = 1 << 23  # pairs of tokens about which a rule is asked at once


class DuplicateEdgesError(ArgumentError):
    """Tiles hold each edge once."""


class Side(NamedTuple):
    """Where the targets, or the sources, stand."""

    token: Tensor | None
    """int32 ``[places]``, a multiple of the block: the token at each place, -1 for nobody; ``None``: its number."""
    num_tokens: int
    block: int
    used: Tensor | None = None
    """int64 ``[]``: how many blocks are in use, where only the device knows; the rest is empty."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-(self.num_tokens if self.token is None else self.token.shape[0]) // self.block)

    def place(self, token: Tensor) -> Tensor:
        """int64: the place of each token."""
        if self.token is None:
            return token.long()
        place = torch.arange(self.token.shape[0], device=token.device)
        # Nobody stands at a place past the end.
        at = torch.where(self.token < 0, self.num_tokens, self.token).long()
        return place.new_empty(self.num_tokens + 1).scatter_(0, at, place).index_select(0, token)

    def table(self, device: torch.device) -> Tensor:
        """int32 ``[blocks, block]``: the token at each place, -1 for nobody."""
        if self.token is not None:
            return self.token.view(-1, self.block)
        number = torch.arange(self.blocks * self.block, dtype=torch.int32, device=device)
        return number.masked_fill_(number >= self.num_tokens, -1).view(-1, self.block)

    def cut(self, used: int) -> Side:
        """Without the blocks that are not in use."""
        if self.token is None or self.used is None:
            return self
        return Side(self.token[: used * self.block], self.num_tokens, self.block)


class Tiles(NamedTuple):
    """Tiles sorted by row, then column."""

    row: Tensor
    """int64 ``[tiles]``: block of targets, those of the copies of a graph one after the other."""
    column: Tensor
    """int64 ``[tiles]``: block of sources within the copy."""
    slot: Tensor
    """int32 ``[tiles]``: where its bits are; -1: every pair is an edge."""
    mask: Tensor
    """int32 ``[slots, block of targets, block of sources // 32]``."""
    turned: Tensor
    """int32 ``[slots, block of sources, block of targets // 32]``: the same bits."""


def tiles_of_edges(graph: TokenGraph, target: Side, source: Side) -> tuple[Tiles, Side, Side]:
    """Edges sorted into tiles; waits for the device once.

    Returns:
        The tiles, and the sides without blocks that are not in use.

    Raises:
        DuplicateEdgesError: If the graph has duplicate edges.
    """
    row, col = graph.row, graph.col
    again = (row[1:] == row[:-1]) & (col[1:] == col[:-1])
    sizes = max(graph.num_targets, 1), max(graph.num_sources, 1)
    copy = row // sizes[0]
    t, s = target.place(row % sizes[0]), source.place(col % sizes[1])
    columns, area = max(source.blocks, 1), target.block * source.block
    number = (copy * target.blocks + t // target.block) * columns + s // source.block
    if graph.num_copies * target.blocks * columns < 2**31:
        number = number.int()  # half the work of sorting
    number, order = number.sort()
    starts = torch.ones_like(number, dtype=torch.bool)
    starts[1:] = number[1:] != number[:-1]
    whole = starts[: max(number.shape[0] - area + 1, 0)] & (
        number[area - 1 :] == number[: max(len(number) - area + 1, 0)]
    )
    num_tiles, num_whole, num_again, *used = _read(starts.sum(), whole.sum(), again.sum(), target.used, source.used)
    if num_again:
        raise DuplicateEdgesError(
            f"tiles hold each edge once, but the graph has {num_again} edges that repeat another; "
            "take graph.coalesce(), or a backend that counts them ('triton', 'numba', 'gather')"
        )

    tile = starts.cumsum(0) - 1
    first = number.new_empty(num_tiles).scatter_(0, tile, number).long()  # all edges of a tile write the same
    slot = torch.arange(num_tiles, dtype=torch.int32, device=number.device)
    if num_whole:
        full = torch.bincount(tile, minlength=num_tiles) == area
        slot = torch.where(full, -1, (~full).cumsum(0) - 1).int()
    slots = num_tiles - num_whole
    t, s = t[order] % target.block, s[order] % source.block
    row_of_bits = torch.where(slot < 0, slots, slot).index_select(0, tile).long()  # whole tiles: past the end
    mask = _set_bits(row_of_bits, t, s, slots, target.block, source.block)
    turned = _set_bits(row_of_bits, s, t, slots, source.block, target.block)
    block_row = first // columns
    before = target.blocks
    target, source = _cut(target, source, used)
    block_row = block_row // before * target.blocks + block_row % before
    return Tiles(block_row, first % columns, slot, mask, turned), target, source


def tiles_of_rule(pattern: Pattern, target: Side, source: Side) -> tuple[Tiles, Side, Side]:
    """Tiles that a rule cannot rule out, their pairs looked at unless it says that all are edges.

    The copies of a graph with leading dimensions have rows of tiles one after the other, and are told apart by the
    rule, whose tokens are numbered on over them.
    """
    used = _read(target.used, source.used)
    target, source = _cut(target, source, used)
    device, columns = pattern.device, max(source.blocks, 1)
    targets, sources = target.table(device), source.table(device)
    number, full = _candidates(pattern, targets, sources)
    asked = number[~full]
    kept, masks, turned = [number[full]], [], []
    whole = [torch.ones_like(kept[0], dtype=torch.bool)]
    for part in asked.split(max(_PAIRS // (target.block * source.block), 1)):
        row = part // columns
        copy = (row // max(target.blocks, 1))[:, None, None]
        t, s = targets[row % max(target.blocks, 1), :, None], sources[part % columns, None, :]
        pairs = pattern.contains(t.clamp(min=0) + copy * target.num_tokens, s.clamp(min=0) + copy * source.num_tokens)
        pairs = pairs & (t >= 0) & (s >= 0)
        some, every = pairs.flatten(1).any(1), pairs.flatten(1).all(1)
        kept.append(part[some])
        whole.append(every[some])
        pairs = pairs[some & ~every]
        masks.append(pack(pairs))
        turned.append(pack(pairs.mT))
    number, order = torch.cat(kept).sort()
    full = torch.cat(whole)
    slot = torch.where(full, -1, (~full).cumsum(0) - 1).int()[order]
    empty = torch.zeros(0, target.block, source.block, dtype=torch.bool, device=device)
    mask = torch.cat([pack(empty), *masks])
    return Tiles(number // columns, number % columns, slot, mask, torch.cat([pack(empty.mT), *turned])), target, source


def pack(pairs: Tensor) -> Tensor:
    """Boolean ``[..., columns]`` to int32 ``[..., columns // 32]``: column j is bit ``j % 32`` of word ``j // 32``."""
    bit = torch.arange(_WORD, dtype=torch.int32, device=pairs.device)
    return (pairs.unflatten(-1, (-1, _WORD)).int() << bit).sum(-1, dtype=torch.int32)


def unpack(words: Tensor) -> Tensor:
    """The inverse of :func:`pack`."""
    bit = torch.arange(_WORD, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> bit & 1).bool().flatten(-2)


def _candidates(pattern: Pattern, targets: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the tiles that may have an edge, ascending, and whether all their pairs are edges."""
    (t_first, t_last, t_count), (s_first, s_last, s_count) = _span(targets), _span(sources)
    area = targets.shape[1] * sources.shape[1]
    columns = max(sources.shape[0], 1)
    numbers, full = [], []
    for copy in range(pattern.num_copies):
        t_before, s_before = copy * pattern.num_targets, copy * pattern.num_sources
        for begin in range(0, targets.shape[0], max(_TILES // columns, 1)):
            rows = slice(begin, begin + max(_TILES // columns, 1))
            t_ends, s_ends = (x[rows, None] + t_before for x in (t_first, t_last)), (s_first, s_last)
            some, every = pattern.tile(*t_ends, *(x + s_before for x in s_ends))
            pairs = t_count[rows, None] * s_count  # of tokens that are there
            some, every = some & (pairs > 0), every & (pairs == area)
            number = some.flatten().nonzero().flatten()
            numbers.append(number + (copy * targets.shape[0] + begin) * columns)
            full.append(every.flatten()[number])
    if not numbers:
        return torch.zeros(0, dtype=torch.int64, device=targets.device), torch.zeros(0, dtype=torch.bool)
    return torch.cat(numbers), torch.cat(full)


def _span(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest and largest token of each block (0 where there is none), and how many it has.

    What lies between the two includes the block: enough for "no pair" and for "every pair".
    """
    held = tokens >= 0
    last = tokens.amax(1).clamp(min=0)
    return torch.where(held, tokens, last[:, None]).amin(1), last, held.sum(1)


def _set_bits(slot: Tensor, i: Tensor, j: Tensor, slots: int, rows: int, columns: int) -> Tensor:
    """int32 ``[slots, rows, columns // 32]``; each bit comes once, so adding is setting."""
    words = columns // _WORD
    mask = torch.zeros((slots + 1) * rows * words, dtype=torch.int32, device=slot.device)
    mask.index_add_(0, (slot * rows + i) * words + j // _WORD, (torch.ones_like(j) << j % _WORD).int())
    return mask.view(slots + 1, rows, words)[:slots]


def _cut(target: Side, source: Side, used: Sequence[int]) -> tuple[Side, Side]:
    cut = target.cut(used[0])
    return cut, cut if source is target else source.cut(used[1])


def _read(*facts: Tensor | None) -> Sequence[int]:
    """Numbers that are on the device, all at once (0 for those that are not asked for)."""
    there = [fact for fact in facts if fact is not None]
    numbers = iter(torch.stack(there).tolist() if there else [])
    return [0 if fact is None else next(numbers) for fact in facts]
