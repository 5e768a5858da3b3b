"""Blocks as a ``BlockMask`` of PyTorch's FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphattn.graph.tiling import make_blocks
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels.blocks import Blocks

__all__ = ["block_mask", "to_block_mask"]

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def to_block_mask(graph: TokenGraph, block: int = 128) -> Any:
    """A ``BlockMask`` over tokens in their own order.

    Args:
        graph: Any graph that holds each edge once; its leading dimensions become those of the mask.
        block: Tokens in a block of either side: 32, 64 or 128 (the kernels of PyTorch 2.11 want 128).

    Returns:
        ``torch.nn.attention.flex_attention.BlockMask`` of shape ``[B or 1, H or 1, T, S]``.

    Raises:
        ArgumentError: If the block size does not fit, or the graph has duplicate edges.
    """
    return block_mask(graph, make_blocks(graph, block_targets=block, block_sources=block, align=False))


def block_mask(graph: TokenGraph, blocks: Blocks) -> Any:
    """The ``BlockMask`` over the places of blocks (tokens, where these stand in order).

    Args:
        graph: The graph; a pattern's rule becomes the ``mask_mod``, else the bits of the tiles are looked up.
        blocks: Its tiles.
    """
    from torch.nn.attention.flex_attention import BlockMask

    batch = graph.leading[0] if graph.leading_axes.startswith("b") else 1
    heads = graph.leading[-1] if graph.leading_axes.endswith("h") else 1
    view, columns = blocks.by_target, blocks.source_blocks
    shape = (batch, heads, blocks.target_blocks, columns)
    row = torch.repeat_interleave(view.ptr.diff(), output_size=view.num_tiles)
    kind = torch.full((view.num_rows, columns), -2, dtype=torch.int32, device=view.ptr.device)
    kind[row, view.index.long()] = view.slot
    kind = kind.view(shape)
    partial_count, partial = _listed(kind >= 0)
    full_count, full = _listed(kind == -1)
    rule = _by_rule(graph, blocks) if graph.pattern is not None else _by_bits(blocks, kind)
    return BlockMask.from_kv_blocks(
        partial_count,
        partial,
        full_count,
        full,
        BLOCK_SIZE=(blocks.block_targets, blocks.block_sources),
        mask_mod=rule,
        seq_lengths=(blocks.target_places, blocks.source_places),
    )


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles each row has, and their columns in front."""
    return tiles.sum(-1, dtype=torch.int32), tiles.int().argsort(dim=-1, descending=True, stable=True).int()


def _by_rule(graph: TokenGraph, blocks: Blocks) -> MaskMod:
    pattern, target, source = graph.pattern, blocks.target, blocks.source
    assert pattern is not None
    contains, axes = pattern.contains, graph.leading_axes
    targets, sources = graph.num_targets, graph.num_sources
    many, heads = axes.startswith("b"), graph.leading[-1] if axes.endswith("h") else 0

    def numbered(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The rule numbers tokens on over the copies of the graph."""
        if not axes:
            return contains(t, s)
        copy = (b * heads + h if many else h) if heads else b
        return contains(copy * targets + t, copy * sources + s)

    if target is None and source is None:
        return numbered

    def rule(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        t = t if target is None else target[t]
        s = s if source is None else source[s]
        return numbered(b, h, t.clamp(min=0), s.clamp(min=0)) & (t >= 0) & (s >= 0)

    return rule


def _by_bits(blocks: Blocks, kind: Tensor) -> MaskMod:
    rows, columns = blocks.block_targets, blocks.block_sources
    mask, none = blocks.by_target.mask, blocks.by_target.mask.shape[0]
    mask = torch.cat([mask, mask.new_zeros(1, rows, columns // 32)])
    many, per_head = kind.shape[0] > 1, kind.shape[1] > 1

    def rule(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        slot = kind[b if many else 0, h if per_head else 0, t // rows, s // columns]
        bits = mask[torch.where(slot < 0, none, slot), t % rows, s % columns // 32]
        return ((bits >> s % 32) & 1).bool() | (slot == -1)

    return rule
