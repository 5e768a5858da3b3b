"""Any token graph as blocks: tiles of two blocks of tokens that share an edge, with a bitmask where not all pairs do.

This is the structure of the tile kernels and of FlexAttention's ``BlockMask``. Patterns are never listed edge by edge:
their rule says what it knows of a whole tile (:meth:`Pattern.tile`), and is asked about pairs only in tiles that it
cannot decide.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.order import align_members
from graphattn.graph.tiles import Side, tiles_of_edges, tiles_of_rule, unpack
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels.blocks import Blocks, BlockView

__all__ = ["Order", "count_edges", "make_blocks", "tile_fill"]

Order = Tensor | tuple[Tensor, Tensor] | None

_SIZES = (32, 64, 128)


def make_blocks(
    graph: TokenGraph,
    *,
    block_targets: int = 64,
    block_sources: int = 64,
    order: Order = None,
    align: bool = True,
) -> Blocks:
    """The tiles of a graph, on its device.

    Waits for the device once for a list of edges, a few times for a pattern.

    Args:
        graph: Any graph that holds each edge once.
        block_targets: Tokens in a block of targets: 32, 64 or 128.
        block_sources: Tokens in a block of sources: 32, 64 or 128.
        order: The token at each place, -1 for nobody (see :mod:`graphattn.graph.order`); a pair (targets, sources)
            where they differ. Default: tokens as they are.
        align: Let every member of a ragged batch start at a block of its own, so that no tile joins two members (where
            there is no ``order``).

    Returns:
        The blocks; a graph with leading dimensions has tiles for each copy.

    Raises:
        ArgumentTypeError: If ``order`` is of another type or dtype.
        ArgumentError: If a block size or ``order`` does not fit, or the graph has duplicate edges.
    """
    for name, size in (("block_targets", block_targets), ("block_sources", block_sources)):
        if size not in _SIZES:
            raise ArgumentError(f"{name} must be one of {_SIZES}, got {size!r}")
    target, source = _sides(graph, block_targets, block_sources, order, align)
    pattern = graph.pattern
    if pattern is None:
        tiles, target, source = tiles_of_edges(graph, target, source)
    else:
        tiles, target, source = tiles_of_rule(pattern, target, source)

    rows, columns = max(target.blocks, 1), max(source.blocks, 1)
    owner = tiles.row // rows * columns + tiles.column
    by_source = (owner * rows + tiles.row % rows).sort()
    slot = tiles.slot.index_select(0, by_source.indices)
    copies = graph.num_copies
    return Blocks(
        _view(tiles.row, tiles.column, tiles.slot, tiles.mask, copies * target.blocks),
        _view(by_source.values // rows, by_source.values % rows, slot, tiles.turned, copies * source.blocks),
        target.token,
        source.token,
        graph.num_targets,
        graph.num_sources,
        block_targets,
        block_sources,
        graph.leading_axes,
    )


def count_edges(blocks: Blocks) -> int:
    """Number of edges, counted in the tiles of all copies."""
    view = blocks.by_target
    full = int((view.slot < 0).sum()) * blocks.block_targets * blocks.block_sources
    return full + sum(int(unpack(part).sum()) for part in view.mask.split(1024))


def tile_fill(graph: TokenGraph, block: int = 64, order: Order = None) -> float:
    """The share of the pairs in tiles that are edges: what :mod:`graphattn.graph.order` is to raise.

    Args:
        graph: See :func:`make_blocks`.
        block: Block size of both sides.
        order: See :func:`make_blocks`.

    Returns:
        In 0..1; 0 for a graph without edges.
    """
    blocks = make_blocks(graph, block_targets=block, block_sources=block, order=order)
    return count_edges(blocks) / max(blocks.by_target.num_tiles * block * block, 1)


def _sides(graph: TokenGraph, block_targets: int, block_sources: int, order: Order, align: bool) -> tuple[Side, Side]:
    sizes = graph.num_targets, graph.num_sources
    if order is None:
        orders: tuple[Tensor | None, Tensor | None] = (None, None)
    elif isinstance(order, Tensor):
        graph._need_square("one order for both sides")
        orders = (order, order)
    else:
        orders = order
    ptrs = (graph.target_ptr, graph.source_ptr) if align else (None, None)
    first = _side(sizes[0], block_targets, orders[0], ptrs[0], graph.device)
    if block_targets == block_sources and sizes[0] == sizes[1] and orders[0] is orders[1] and ptrs[0] is ptrs[1]:
        return first, first
    return first, _side(sizes[1], block_sources, orders[1], ptrs[1], graph.device)


def _side(num_tokens: int, block: int, order: Tensor | None, ptr: Tensor | None, device: torch.device) -> Side:
    if order is not None:
        return Side(_checked(order, num_tokens, block, device), num_tokens, block)
    if ptr is None:
        return Side(None, num_tokens, block)
    token, used = align_members(ptr, num_tokens, block)
    return Side(token, num_tokens, block, used)


def _checked(order: Tensor, num_tokens: int, block: int, device: torch.device) -> Tensor:
    if not isinstance(order, Tensor) or order.dtype not in (torch.int32, torch.int64) or order.dim() != 1:
        got = f"{order.dtype} {list(order.shape)}" if isinstance(order, Tensor) else type(order).__name__
        raise ArgumentTypeError(f"order must be an integer tensor [places], or a pair of them, got {got}")
    order = order.to(device)
    tokens = order[order >= 0]
    if tokens.shape[0] != num_tokens or not torch.equal(
        tokens.sort().values.long(), torch.arange(num_tokens, device=device)
    ):
        raise ArgumentError(
            f"order must hold each of {num_tokens} tokens once, and -1 where nobody stands; got {order.shape[0]} places"
        )
    return F.pad(order.int(), (0, -order.shape[0] % block), value=-1)


def _view(owner: Tensor, index: Tensor, slot: Tensor, mask: Tensor, owners: int) -> BlockView:
    """Tiles that are sorted by owner already."""
    ptr = torch.searchsorted(owner, torch.arange(owners + 1, device=owner.device), out_int32=True)
    return BlockView(ptr, index.int(), slot, mask)
