"""Graphs given by a rule: complete, causal, window, grid, hubs, blocks, prefix, strided.

They combine: Longformer's graph is ``window(n, 256) | hubs(n, 1)``, the graph of causal documents packed into one
sequence is ``causal(n) & blocks(ptr)``. Rules of chance (:func:`random_regular`, :func:`expander`) are explicit
graphs, not patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import check
from graphattn.graph.graph_window import GraphWindow, graph_window
from graphattn.graph.grid_rule import Grid
from graphattn.graph.neighbourhood import Neighbourhood
from graphattn.graph.pattern import Difference, Intersection, Pattern, Transposed, Union
from graphattn.graph.random_graphs import expander, random_regular
from graphattn.graph.rules import Blocks, Causal, Complete, Device, Hubs, Prefix, Window

__all__ = [
    "Blocks",
    "Causal",
    "Complete",
    "Difference",
    "GraphWindow",
    "Grid",
    "Hubs",
    "Neighbourhood",
    "Intersection",
    "Pattern",
    "Prefix",
    "Transposed",
    "Union",
    "Window",
    "blocks",
    "causal",
    "complete",
    "expander",
    "graph_window",
    "grid",
    "hubs",
    "neighbourhood",
    "prefix",
    "random_regular",
    "strided",
    "window",
]


def complete(num_targets: int, num_sources: int | None = None, *, device: Device = None) -> Complete:
    """Every target reads every source.

    Args:
        num_targets: Number of targets.
        num_sources: Number of sources; default: the targets themselves (each token then reads itself too).
        device: Where edges live once they are enumerated.
    """
    num_targets = _count("num_targets", num_targets)
    num_sources = num_targets if num_sources is None else _count("num_sources", num_sources)
    return Complete(num_targets, num_sources, device=device)


def causal(num_tokens: int, *, device: Device = None) -> Causal:
    """Every token reads itself and what is before it.

    Args:
        num_tokens: Length of the sequence.
        device: Where edges live once they are enumerated.
    """
    return Causal(_count("num_tokens", num_tokens), device)


def prefix(num_tokens: int, size: int, *, device: Device = None) -> Prefix:
    """Prefix language model: every token reads the first ``size`` tokens, itself and what is before it
    (Raffel et al., 2020, "Exploring the limits of transfer learning").

    Args:
        num_tokens: Length of the sequence.
        size: Length of the prefix, 0 to ``num_tokens``.
        device: Where edges live once they are enumerated.
    """
    num_tokens = _count("num_tokens", num_tokens)
    return Prefix(num_tokens, _count("size", size, most=num_tokens), device)


def window(num_tokens: int, size: int, dilation: int = 1, causal: bool = False, *, device: Device = None) -> Window:
    """Sliding window: token ``t`` reads ``t + dilation * j`` for ``j = -size..size``, itself included
    (Beltagy et al., 2020, "Longformer", where a window of width ``w`` has ``size = w / 2``).

    Args:
        num_tokens: Length of the sequence.
        size: Number of tokens read on each side; 0 leaves the token itself.
        dilation: Distance between tokens that are read.
        causal: Read ``j = -size..0`` only.
        device: Where edges live once they are enumerated.
    """
    num_tokens = _count("num_tokens", num_tokens)
    return Window(num_tokens, _count("size", size), _count("dilation", dilation, 1), bool(causal), device)


def strided(num_tokens: int, stride: int, causal: bool = False, *, device: Device = None) -> Window:
    """Every token reads each ``stride``-th token, counted from itself: ``(target - source) % stride == 0``
    (Child et al., 2019, "Generating long sequences with sparse transformers").

    Args:
        num_tokens: Length of the sequence.
        stride: Distance between tokens that are read.
        causal: Read no later token.
        device: Where edges live once they are enumerated.

    Returns:
        A dilated window that reaches both ends of the sequence.
    """
    num_tokens = _count("num_tokens", num_tokens)
    stride = _count("stride", stride, 1)
    return Window(num_tokens, max(num_tokens - 1, 0) // stride, stride, bool(causal), device)


def hubs(num_tokens: int, count: int, *, device: Device = None) -> Hubs:
    """Global tokens: the first ``count`` tokens read all tokens, themselves included, and are read by all.

    Args:
        num_tokens: Number of tokens, hubs included.
        count: Number of hubs, 0 to ``num_tokens``.
        device: Where edges live once they are enumerated.
    """
    num_tokens = _count("num_tokens", num_tokens)
    return Hubs(num_tokens, _count("count", count, most=num_tokens), device)


def blocks(
    ptr: Tensor | Sequence[int],
    source_ptr: Tensor | Sequence[int] | None = None,
    *,
    num_tokens: int | None = None,
    num_sources: int | None = None,
    num_edges: int | None = None,
    validate: bool = True,
    device: Device = None,
) -> Blocks:
    """Complete inside each member of a ragged batch, nothing between members; never padded.

    Args:
        ptr: ``[B + 1]`` first token of each member, ending with the number of tokens (PyG's ``ptr``).
        source_ptr: The same for sources that are other tokens than the targets (cross-attention).
        num_tokens: The last entry of ``ptr``, where reading it from the device would cost too much (with
            ``validate=False``, nothing then waits for the device).
        num_sources: The last entry of ``source_ptr``, likewise.
        num_edges: The sum over members of targets times sources, likewise (attention that lists the edges asks for it).
        validate: Check the pointers and count the edges.
        device: Where the edges live; default: with ``ptr``.
    """
    targets = torch.as_tensor(ptr, device=device)
    check.check_ptr_form("ptr", targets, targets.device)
    sources = targets if source_ptr is None else torch.as_tensor(source_ptr, device=targets.device)
    if num_tokens is None:
        num_tokens = int(targets[-1])
    if source_ptr is None:
        num_sources = num_tokens
    else:
        check.check_ptr_form("source_ptr", sources, targets.device)
        num_sources = int(sources[-1]) if num_sources is None else num_sources
    assert num_sources is not None
    if validate:
        check.check_ptrs(targets, sources, num_tokens, num_sources, targets.device)
    graph = Blocks(targets, sources, num_tokens, num_sources, None if validate else num_edges)
    if validate and not torch.compiler.is_compiling():
        _ = graph.num_edges, graph.equal_members  # looked up now, so that compiled and exported code need not
        if num_edges is not None and num_edges != graph.num_edges:
            raise ArgumentError(f"num_edges must be what ptr says, {graph.num_edges}, got {num_edges}")
    return graph


def grid(
    height: int,
    width: int,
    radius: int | None = None,
    *,
    neighbours: Literal[4, 8] | None = None,
    torus: bool = False,
    self_loops: bool = False,
    device: Device = None,
) -> Grid:
    """Every cell reads the cells around it; cell ``(row, column)`` is token ``row * width + column``.

    Args:
        height: Number of rows.
        width: Number of columns.
        radius: Read the square of side ``2 * radius + 1`` around the cell; default: 1.
        neighbours: Instead of ``radius``: 4 (edges touch) or 8 (corners too, the same as radius 1).
        torus: Join opposite borders.
        self_loops: Let each cell read itself.
        device: Where edges live once they are enumerated.
    """
    height, width = _count("height", height), _count("width", width)
    if neighbours is not None:
        if radius is not None:
            raise ArgumentError("give radius or neighbours, not both")
        if neighbours not in (4, 8):
            raise ArgumentError(f"neighbours must be 4 or 8, got {neighbours!r}; use radius for more")
    reach = 1 if radius is None else _count("radius", radius)
    return Grid(height, width, reach, neighbours != 4, bool(torus), bool(self_loops), device)


def neighbourhood(height: int, width: int, size: int, *, device: Device = None) -> Neighbourhood:
    """Every cell reads the ``size`` x ``size`` cells around it, itself included; at a border the square moves
    inside, so that all cells read equally many (neighbourhood attention: Hassani et al., CVPR 2023, section 3.1).

    Args:
        height: Number of rows.
        width: Number of columns; cell ``(row, column)`` is token ``row * width + column``.
        size: Side of the square, odd; along an axis with fewer cells, all are read.
        device: Where edges live once they are enumerated.
    """
    height, width = _count("height", height), _count("width", width)
    if _count("size", size, 1) % 2 == 0:
        raise ArgumentError(f"size must be odd, for the cell to be the middle of its square, got {size}")
    return Neighbourhood(height, width, size, device)


def _count(name: str, value: int, least: int = 0, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise ArgumentTypeError(f"{name} must be an int, got {value!r}")
    if value < least or (most is not None and value > most):
        raise ArgumentError(f"{name} must be {least} {'or more' if most is None else f'to {most}'}, got {value}")
    return value
