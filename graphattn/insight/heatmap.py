"""Pictures of attention maps, of tables as colours, and of trees with what their tokens receive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.insight.pictures import axes_of, plot_graph_relevance
from graphattn.insight.trees import tree_depth
from graphattn.optional import require

__all__ = ["plot_map", "plot_table", "plot_tree"]


def plot_map(
    weights: Tensor,
    *,
    sinks: Tensor | None = None,
    lines: Iterable[int] = (),
    groups: Iterable[int] = (),
    ax: Any = None,
) -> Any:
    """An attention map as colours, on a logarithmic scale over three powers of ten; rows are targets.

    Args:
        weights: ``[T, S]``; what is 0, or NaN, stays white.
        sinks: bool ``[S]``: columns to mark with a triangle.
        lines: Offsets to mark with a line beside the diagonal.
        groups: Places of tokens before which a thin line is drawn (subtrees, say).
        ax: Axes to draw on; default: new ones.

    Returns:
        The axes.

    Raises:
        ArgumentError: If the map is no matrix or has no positive weight.
    """
    if weights.dim() != 2 or not bool((weights > 0).any()):
        raise ArgumentError(f"weights must be [T, S] with a positive one, got {list(weights.shape)}")
    colors = require("matplotlib.colors", extra="train", purpose="plot_map")
    ticker = require("matplotlib.ticker", extra="train", purpose="plot_map")
    ax = axes_of(ax)
    values = weights.detach().cpu().double()
    top = float(values[values > 0].max())
    shown = torch.where(values > 0, values.clamp(min=top * 1e-3), float("nan"))
    image = ax.imshow(shown.numpy(), cmap="viridis", norm=colors.LogNorm(top * 1e-3, top), interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="weight", shrink=0.85)
    for place in groups:
        ax.axvline(place - 0.5, color="0.6", lw=0.4)
        ax.axhline(place - 0.5, color="0.6", lw=0.4)
    rows, count = values.shape
    for column in [] if sinks is None else sinks.nonzero().flatten().tolist():
        ax.annotate("\u25bc", (column, -0.5), color="C3", ha="center", va="bottom", fontsize=7, annotation_clip=False)
    for offset in lines:
        ax.plot([0, min(count, rows - offset) - 1], [offset, min(rows, count + offset) - 1], color="C3", lw=0.7)
    ax.set_xlim(-0.5, count - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel("source (is read)")
    ax.set_ylabel("target (reads)")
    return ax


def plot_table(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    deviation: Tensor | None = None,
    label: str = "",
    row_label: str = "",
    column_label: str = "",
    ax: Any = None,
) -> Any:
    """A table as colours, each cell with its number.

    Args:
        values: ``[R, C]``; cells of NaN stay white.
        rows: Names of the rows.
        columns: Names of the columns.
        deviation: ``[R, C]`` what stands after "±".
        label: Of the colour bar.
        row_label: What the rows are.
        column_label: What the columns are.
        ax: Axes to draw on; default: new ones.

    Returns:
        The axes.
    """
    if values.shape != (len(rows), len(columns)):
        raise ArgumentError(f"values must be [{len(rows)}, {len(columns)}] by its names, got {list(values.shape)}")
    ax = axes_of(ax)
    shown = values.detach().cpu().double()
    image = ax.imshow(shown.numpy(), cmap="viridis")
    known = shown[~shown.isnan()].tolist()
    low, high = min(known, default=0.0), max(known, default=0.0)
    for row in range(len(rows)):
        for column in range(len(columns)):
            value = float(shown[row, column])
            text = f"{value:.1f}" if deviation is None else f"{value:.1f}\n±{float(deviation[row, column]):.1f}"
            dark = (value - low) < 0.6 * (high - low)
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), list(columns), rotation=45, ha="right")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xlabel(column_label)
    ax.set_ylabel(row_label)
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


def plot_tree(parent: Tensor, values: Tensor, *, label: str = "attention received", ax: Any = None) -> Any:
    """A tree from its root down, with a number of each vertex as colour and size.

    Args:
        parent: int64 ``[V]`` in pre-order, -1 for the root.
        values: ``[V]``.
        label: Of the colour bar.
        ax: Axes to draw on; default: new ones.

    Returns:
        The axes.
    """
    if parent.dim() != 1 or values.shape != parent.shape:
        raise ArgumentError(f"values must be {list(parent.shape)} as parent, got {list(values.shape)}")
    parent = parent.cpu()
    depth = tree_depth(parent)
    count = len(parent)
    has_child = torch.zeros(count, dtype=torch.bool)
    has_child[parent[parent >= 0]] = True
    across = torch.zeros(count, dtype=torch.float64)
    across[~has_child] = torch.arange(int((~has_child).sum()), dtype=torch.float64)  # leaves, side by side
    for vertex in reversed(range(count)):  # in pre-order, children come after their parent
        children = (parent == vertex).nonzero().flatten()
        if len(children):
            across[vertex] = across[children].mean()
    child = (parent >= 0).nonzero().flatten()
    graph = TokenGraph.from_edge_index(torch.stack([parent[child], child]), count)
    across = across / across.max().clamp(min=1.0)
    places = torch.stack([across * 3.0, -depth.double()], 1)
    return plot_graph_relevance(graph, values, positions=places, label=label, ax=ax)
