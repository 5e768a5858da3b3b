"""A graph in words and in a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import algebra, convert
from graphattn.graph.tiling import tile_fill
from graphattn.graph.token_graph import TokenGraph
from graphattn.optional import require

__all__ = ["describe", "diameter_bounds", "plot"]

_LISTED = 5_000_000  # a pattern with more edges is described without listing them
_SEARCHED = 1_000_000  # edges of a graph whose diameter is still searched
_DRAWN = 200  # tokens of a graph that is drawn as nodes and arrows


def describe(graph: TokenGraph) -> str:
    """One table of facts about a graph.

    Returns:
        A line each for sizes, members, density, degrees, duplicates (without any: how full tiles are, see
        :func:`~graphattn.graph.tiling.tile_fill`), self-loops, symmetry, weak components, targets that read nothing,
        and bounds of the diameter (graphs up to a million edges). A pattern of more than five million edges is
        described by what its rule says.
    """
    facts: list[tuple[str, str]] = []
    if graph.pattern is not None:
        facts.append(("rule", repr(graph)))
    if graph.is_square:
        facts.append(("tokens", f"{graph.num_targets:,}"))
    else:
        facts.append(("targets", f"{graph.num_targets:,}"))
        facts.append(("sources", f"{graph.num_sources:,}"))
    if graph.leading:
        axes = {"b": "batch entries", "h": "heads"}
        named = (f"{n} {axes[axis]}" for n, axis in zip(graph.leading, graph.leading_axes, strict=True))
        facts.append(("copies", " x ".join(named)))
    if graph.target_ptr is not None:
        sizes = graph.target_ptr.diff()
        facts.append(("members", f"{graph.num_members:,} (targets: {_spread(sizes)})"))
    if graph.pattern is not None and graph.pattern.max_edges > _LISTED:
        facts.append(("edges", f"at most {graph.pattern.max_edges:,} (not listed)"))
    else:
        facts += _edge_facts(graph)
    facts.append(("device", str(graph.device)))
    width = max(len(name) for name, _ in facts)
    return "\n".join([type(graph).__name__, *(f"  {name:<{width}}  {fact}" for name, fact in facts)])


def diameter_bounds(graph: TokenGraph) -> tuple[int, int]:
    """Bounds of the longest shortest path in the largest component, with edges walked both ways.

    A double sweep (Magnien et al., 2009): the eccentricity of the token farthest from some token is a lower bound,
    twice the least eccentricity met is an upper bound.

    Returns:
        Lower and upper bound; ``(0, 0)`` for a graph without tokens.
    """
    graph._need_square("diameter_bounds")
    if graph.num_targets == 0:
        return 0, 0
    matrix = convert.to_scipy(graph)
    matrix = (matrix + matrix.T).tocsr()
    label = algebra.connected_components(graph).cpu().numpy()
    largest = label == np.bincount(label).argmax()
    degree = np.where(largest, np.diff(matrix.indptr), -1)
    start = int(degree.argmax())
    near, farthest = _eccentricity(matrix, start)
    far, _ = _eccentricity(matrix, farthest)
    return far, max(far, min(2 * near, 2 * far))


def plot(graph: TokenGraph, ax: Any = None) -> Any:
    """Draw a graph: up to 200 tokens as nodes with an arrow from each source to its target, more tokens (and
    bipartite graphs) as a picture of the matrix, rows targets and columns sources.

    Args:
        graph: A graph without leading dimensions.
        ax: Matplotlib axes to draw on; default: new ones.

    Returns:
        The axes.

    Raises:
        ArgumentError: If the graph has leading dimensions, or is a pattern of more than five million edges.
    """
    if graph.leading:
        raise ArgumentError(f"plot needs a graph without leading dimensions, got {list(graph.leading)}")
    if graph.pattern is not None and graph.pattern.max_edges > _LISTED:
        raise ArgumentError(f"plot lists all edges, and {graph!r} may have {graph.pattern.max_edges:,}")
    pyplot = require("matplotlib.pyplot", extra="train", purpose="plot")
    if ax is None:
        _, ax = pyplot.subplots()
    if graph.is_square and graph.num_targets <= _DRAWN:
        networkx = require("networkx", extra="nx", purpose="plot")
        drawing = networkx.DiGraph(graph.to_networkx())
        place = networkx.spring_layout(drawing, seed=0)
        colour = graph.target_batch.tolist()
        networkx.draw_networkx(
            drawing, place, ax=ax, node_size=80, font_size=6, node_color=colour, cmap="tab20", alpha=0.9
        )
        ax.set_axis_off()
    else:
        ax.spy(graph.to_scipy(), markersize=max(1.0, 100 / max(graph.num_targets, graph.num_sources, 10)))
        ax.set_xlabel("source (is read)")
        ax.set_ylabel("target (reads)")
    ax.set_title(f"{graph.num_edges:,} edges")
    return ax


def _edge_facts(graph: TokenGraph) -> list[tuple[str, str]]:
    cells = graph.num_copies * graph.num_targets * graph.num_sources
    density = f" ({graph.num_edges / cells:.3%} of all pairs)" if cells else ""
    facts = [
        ("edges", f"{graph.num_edges:,}{density}"),
        ("in-degree", _spread(graph.in_degree)),
        ("out-degree", _spread(graph.out_degree)),
        ("targets that read nothing", f"{int((graph.in_degree == 0).sum()):,}"),
        ("duplicate edges", f"{graph.num_edges - algebra.coalesce(graph).num_edges:,}"),
    ]
    if graph.num_edges and not graph.has_duplicates:
        facts.append(("tiles of 64 x 64", f"{tile_fill(graph, 64):.1%} of their pairs are edges"))
    if not graph.is_square:
        return facts
    facts.append(("self-loops", f"{int((graph.row == graph.col).sum()):,}"))
    facts.append(("symmetric", "yes" if algebra.is_symmetric(graph) else "no"))
    if graph.leading or graph.num_targets == 0:
        return facts
    sizes = torch.bincount(algebra.connected_components(graph))
    facts.append(("components", f"{len(sizes):,} (largest: {int(sizes.max()):,} tokens)"))
    if graph.num_edges <= _SEARCHED:
        low, high = diameter_bounds(graph)
        bounds = f"{low}" if low == high else f"{low} to {high}"
        facts.append(("diameter", f"{bounds} (largest component, edges both ways)"))
    return facts


def _spread(counts: Tensor) -> str:
    if counts.numel() == 0:
        return "none"
    values = counts.double().cpu()
    middle = values.quantile(0.5) if len(values) < 2**24 else values.median()
    return f"min {int(values.min())}, median {middle:g}, mean {values.mean():.4g}, max {int(values.max())}"


def _eccentricity(matrix: Any, start: int) -> tuple[int, int]:
    """Longest distance from a token, and a token at that distance."""
    from scipy.sparse import csgraph

    distance = csgraph.dijkstra(matrix, indices=start, unweighted=True)
    distance[~np.isfinite(distance)] = -1
    return int(distance.max()), int(distance.argmax())
