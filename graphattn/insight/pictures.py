"""Pictures of relevance, over images and graphs, and of deletion curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.insight.deletion import DeletionCurve
from graphattn.optional import require

__all__ = ["plot_deletion", "plot_graph_relevance", "plot_relevance"]


def plot_relevance(
    image: Tensor, relevance: Tensor, *, box: Sequence[float] | None = None, alpha: float = 0.55, ax: Any = None
) -> Any:
    """The relevance of patches as colours over their image.

    Args:
        image: ``[height, width]`` or ``[channels, height, width]`` with 1 or 3 channels, black 0 and white 1.
        relevance: ``[rows, columns]`` of patches.
        box: Left, top, right, bottom of a box to draw, in pixels.
        alpha: Opacity of the colours.
        ax: Axes to draw on; default: new ones.

    Returns:
        The axes.

    Raises:
        ArgumentError: If shapes do not fit.
    """
    ax = axes_of(ax)
    picture = image.detach().cpu().float()
    picture = picture.unsqueeze(0) if picture.dim() == 2 else picture
    if picture.dim() != 3 or picture.shape[0] not in (1, 3) or relevance.dim() != 2:
        raise ArgumentError(
            "image must be [height, width] or [1 or 3, height, width] and relevance [rows, columns], got "
            f"{list(image.shape)} and {list(relevance.shape)}"
        )
    height, width = picture.shape[1:]
    extent = (0, width, height, 0)
    ax.imshow(picture.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy(), extent=extent)
    ax.imshow(relevance.detach().cpu().float().numpy(), extent=extent, cmap="inferno", alpha=alpha)
    if box is not None:
        patches = require("matplotlib.patches", extra="train", purpose="plot_relevance")
        left, top, right, bottom = map(float, box)
        ax.add_patch(patches.Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="cyan", lw=1.5))
    ax.set_axis_off()
    return ax


def plot_graph_relevance(
    graph: TokenGraph, relevance: Tensor, *, positions: Tensor | None = None, label: str = "relevance", ax: Any = None
) -> Any:
    """The relevance of tokens as colour and size of the nodes of their graph.

    Args:
        graph: A square graph without leading dimensions.
        relevance: ``[N]``; tokens of NaN stay hollow.
        positions: ``[N, 2]`` where the tokens are drawn; default: NetworkX's spring layout, with a fixed seed.
        label: Of the colour bar.
        ax: Axes to draw on; default: new ones.

    Returns:
        The axes.

    Raises:
        ArgumentError: If shapes do not fit.
    """
    if not graph.is_square or graph.leading or relevance.shape != (graph.num_tokens,):
        raise ArgumentError(
            f"relevance must be [{graph.num_targets}] for a square graph without leading dimensions, got "
            f"{list(relevance.shape)} and {graph}"
        )
    ax = axes_of(ax)
    if positions is None:
        networkx = require("networkx", extra="nx", purpose="plot_graph_relevance")
        drawn = networkx.spring_layout(networkx.Graph(graph.to_networkx().to_undirected()), seed=0)
        positions = torch.tensor([list(drawn[token]) for token in range(graph.num_tokens)])
    if positions.shape != (graph.num_tokens, 2):
        raise ArgumentError(f"positions must be [{graph.num_tokens}, 2], got {list(positions.shape)}")
    place = positions.detach().cpu().double()
    lines = require("matplotlib.collections", extra="train", purpose="plot_graph_relevance")
    ends = place[graph.edge_index.cpu()].permute(1, 0, 2)
    ax.add_collection(lines.LineCollection(ends.numpy(), colors="0.7", linewidths=0.5, zorder=1))
    values = relevance.detach().cpu().double()
    known = values[~values.isnan()]
    low, high = (known if len(known) else values.new_zeros(1)).aminmax()
    size = (20 + 120 * (values - low) / (high - low).clamp(min=1e-12)).nan_to_num(nan=20.0)
    style = {"cmap": "inferno", "zorder": 2, "edgecolors": "0.3", "plotnonfinite": True}
    dots = ax.scatter(*place.T.numpy(), c=values.numpy(), s=size.numpy(), **style)
    ax.figure.colorbar(dots, ax=ax, label=label)
    ax.set_axis_off()
    ax.set_aspect("equal")
    return ax


def plot_deletion(curves: Mapping[str, DeletionCurve], *, measure: str = "accuracy", ax: Any = None) -> Any:
    """Deletion curves by name, with the area over each.

    Args:
        curves: From :func:`graphattn.insight.deletion_curve`.
        measure: Label of the vertical axis.
        ax: Axes to draw on; default: new ones.

    Returns:
        The axes.
    """
    ax = axes_of(ax)
    for name, curve in curves.items():
        style = "-" if curve.order == "morf" else "--"
        ax.plot(curve.share, curve.score, style, label=f"{name} ({curve.order}, area over {curve.area_over:.3f})")
    ax.set_xlabel("share of patches deleted")
    ax.set_ylabel(measure)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def axes_of(ax: Any) -> Any:
    """The axes given, or new ones."""
    if ax is not None:
        return ax
    figure = require("matplotlib.figure", extra="train", purpose="a picture").Figure(layout="constrained")
    return figure.subplots()
