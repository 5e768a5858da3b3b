"""What attention builds on a graph once and finds again: sorted views, schedules, tiles; and whether tiles suit it."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from graphattn.errors import ArgumentError
from graphattn.graph.bits import BitGraph
from graphattn.graph.block_mask import to_block_mask
from graphattn.graph.check import waits_for_nothing
from graphattn.graph.graph_window import GraphWindow
from graphattn.graph.grid_rule import Grid
from graphattn.graph.lists import ListGraph
from graphattn.graph.neighbourhood import Neighbourhood
from graphattn.graph.order import image_tiles
from graphattn.graph.pattern import Pattern
from graphattn.graph.rules import Causal, Complete
from graphattn.graph.tiles import DuplicateEdgesError
from graphattn.graph.tiling import Order, make_blocks
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels._schedule import schedule_of
from graphattn_kernels.bits import to_blocks
from graphattn_kernels.blocks import Blocks

__all__ = [
    "block_size",
    "blocks_of",
    "builds_tiles_at_once",
    "estimated_fill",
    "flex_mask_of",
    "prepare",
    "suitable_blocks",
]

# Share of the pairs in tiles from which tiles beat a walk along the edges, which takes time for every channel of an
# edge where a tile takes the same for 16 channels as for 64. Measured on an H200 with experiments/benchmarks, forward /
# with backward. 64 channels a head: image grid in squares of 8 x 8, 8.5 % full, tiles 0.39 / 1.4 ms, edges 1.56 / 4.3
# ms; masks of 197 tokens, 6 % full, tiles 36 / 127 us, edges 98 / 250 us. 10 channels: graphs of 118 tokens, 38 % full,
# tiles 37 / 118 us, edges 93 / 329 us. 16 channels: molecules, 5 % full, tiles 42 / 163 us, edges 13 / 40 us.
_LEAST_FILL, _MOST_FILL = 0.05, 0.2


def least_fill(width: int | None) -> float:
    """Share of the pairs in tiles that must be edges for tiles to be taken, for heads of ``width`` channels."""
    return _LEAST_FILL if width is None else min(_MOST_FILL, max(_LEAST_FILL, 3.2 / width))


# Tokens in a block, by the tokens of a member. Small blocks waste less of a small member, large ones load keys and
# values less often. Measured on an H200, 128 graphs of about 118 tokens, 10 channels a head, forward + backward: blocks
# of 32, 64 and 128 tokens 124, 118 and 176 us; masks of 197 tokens, 64 channels: 201, 150 and 187 us.
BLOCK_SIZES = ((32, 32), (2048, 64))
LARGEST_BLOCK = 128

# The names of graphattn.backends, which stands above this module.
_PREPARED = ("auto", "reference", "gather", "numba", "triton", "tiles", "lists", "flex", "sdpa", "flash")

_CELLS = 8  # side of the squares that the tokens of a grid are taken in


def prepare(graph: TokenGraph, backend: str, block: int | tuple[int, int] | None, order: Order) -> None:
    """See :meth:`TokenGraph.prepare`."""
    if backend not in _PREPARED:
        raise ArgumentError(f"backend must be one of {sorted(_PREPARED)}, got {backend!r}")
    graph._chosen = None  # what is there now may serve better
    if backend == "tiles":
        graph._blocks = _make(graph, block, order)
        graph._tile_fill = math.inf  # whatever it is, tiles are wanted
        return
    if block is not None or order is not None:
        raise ArgumentError(f"block and order are for backend 'tiles', got backend {backend!r}")
    if backend == "flex":
        flex_mask_of(graph)
        return
    on_cuda = graph.device.type == "cuda"
    if isinstance(graph.pattern, GraphWindow) and backend in ("auto", "sdpa"):
        _ = graph.pattern.row_mask
        return
    if backend in ("sdpa", "flash", "lists") or (backend == "auto" and on_cuda and isinstance(graph, ListGraph)):
        return
    if backend == "auto" and on_cuda:
        if _is_dense(graph.pattern):
            return
        if suitable_blocks(graph) is not None and (graph._tile_fill or 0.0) >= _MOST_FILL:
            return  # heads of any width take the tiles
    structure = graph.structure
    if on_cuda:
        schedule_of(structure.by_target)
        schedule_of(structure.by_source)


def blocks_of(graph: TokenGraph) -> Blocks:
    """The tiles of a graph, built at first use.

    Raises:
        ArgumentError: If the graph has duplicate edges.
    """
    if graph._blocks is None:
        graph._blocks = _make(graph, None, None)
    return graph._blocks


def flex_mask_of(graph: TokenGraph) -> Any:
    """The ``BlockMask`` of a graph, built at first use.

    Raises:
        ArgumentError: If the graph has duplicate edges.
    """
    if graph._flex_mask is None:
        graph._flex_mask = to_block_mask(graph)
    return graph._flex_mask


def suitable_blocks(graph: TokenGraph, width: int | None = None) -> Blocks | None:
    """The tiles of a graph whose tiles are full enough to attend by; ``None``: walk along its edges.

    Compiled code and CUDA graphs must not wait for the device, and take tiles only where they are there already.

    Args:
        graph: The graph.
        width: Channels of a head; ``None``: as many as favour tiles.
    """
    if builds_tiles_at_once(graph):  # its edges cost a wait
        return blocks_of(graph)
    if waits_for_nothing(graph.device):
        return None if graph._tile_fill is None or graph._tile_fill < least_fill(width) else graph._blocks
    if graph._tile_fill is None:
        graph._tile_fill = _fill(graph)
    if graph._tile_fill < least_fill(width):
        return None
    try:
        return blocks_of(graph)
    except DuplicateEdgesError:
        graph._tile_fill = 0.0
        return None


def estimated_fill(graph: TokenGraph, block: tuple[int, int]) -> float:
    """The share of pairs in tiles that are edges, from counts alone: as if members were of one size and all of their
    tiles held an edge. Nothing waits for the device and no pattern is listed."""
    num_edges = graph.num_edges if graph.pattern is None else graph.pattern.max_edges
    members = graph.num_copies * max(graph.num_members, 1)
    sides = zip((graph.num_targets, graph.num_sources), block, strict=True)
    blocks = [-(-tokens // (max(graph.num_members, 1) * size)) * size for tokens, size in sides]
    return num_edges / max(members * blocks[0] * blocks[1], 1)


def block_size(graph: TokenGraph) -> tuple[int, int]:
    """Tokens in a block of targets, and of sources, that suit the members of a graph."""
    members = max(graph.num_members, 1)
    sizes = []
    for tokens in (graph.num_targets, graph.num_sources):
        sizes.append(next((size for most, size in BLOCK_SIZES if tokens <= most * members), LARGEST_BLOCK))
    return sizes[0], sizes[1]


def _fill(graph: TokenGraph) -> float:
    if graph.pattern is None:
        return estimated_fill(graph, block_size(graph))
    blocks = blocks_of(graph)  # a rule is asked: most of its tiles may be empty
    pairs = blocks.by_target.num_tiles * blocks.block_targets * blocks.block_sources
    return graph.pattern.max_edges / max(pairs, 1)


def _make(graph: TokenGraph, block: int | tuple[int, int] | None, order: Order) -> Blocks:
    rule = graph.pattern
    if isinstance(graph, BitGraph) and order is None and (block is None or isinstance(block, int)):
        size = block_size(graph)[0] if block is None else block
        return to_blocks(graph.flat_words, graph.num_sources, size, graph.leading_axes)
    if _is_uni(rule) and order is None and (block is None or isinstance(block, int)):
        size = block_size(graph)[0] if block is None else block
        return to_blocks(rule.words, graph.num_sources, size, graph.leading_axes, causal=True)
    if order is None and isinstance(rule, Grid | Neighbourhood) and rule.width > _CELLS < rule.height:
        # A cell's neighbours stand in a few squares of cells, but in as many stretches of rows as the radius says.
        order = image_tiles(rule.height, rule.width, _CELLS)
        block = _CELLS * _CELLS if block is None else block
    sizes = block_size(graph) if block is None else (block, block) if isinstance(block, int) else block
    return make_blocks(graph, block_targets=sizes[0], block_sources=sizes[1], order=order)


def builds_tiles_at_once(graph: TokenGraph) -> bool:
    """Whether tiles are made without waiting for the device."""
    return isinstance(graph, BitGraph) or _is_uni(graph.pattern)


def _is_uni(pattern: Pattern | None) -> TypeGuard[GraphWindow]:
    return isinstance(pattern, GraphWindow) and pattern.direction == "uni"


def _is_dense(pattern: Pattern | None) -> bool:
    """Whether PyTorch's own dense attention serves it without any structure."""
    return isinstance(pattern, Complete) or type(pattern) is Causal
