"""What every mechanism offers to the blocks and models above it, and the table of mechanisms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from graphattn._inputs import check_graph
from graphattn.attention import draw_seed
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.registry import Registry

__all__ = [
    "MECHANISMS",
    "Mechanism",
    "Transform",
    "check_call",
    "check_copies",
    "check_edge",
    "check_rows",
    "drop_seed",
    "head_width",
]

Transform = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Queries, keys and values ``[..., N, H, D]`` to those that attention is computed with: rotated by their positions,
with the keys and values of earlier tokens in front."""


class Mechanism(nn.Module):
    """Self-attention over a token graph: rows in, rows out.

    A subclass takes ``(width, heads, edge_width=None, *, dropout=0.0, attention_dropout=0.0, ...)``, so that models can
    make it by name, and implements :meth:`forward`. One that makes new edge rows also takes ``edge_output=True``, which
    models turn off where nobody reads them.

    One that compares queries and keys sets :attr:`takes_transform` and takes ``transform=`` (a :data:`Transform`) in
    its forward. The graph may then have more sources than targets: the tokens of ``x`` ask, and what the transform
    returns answers. That is how positions are rotated, and how a language model keeps its keys and values.
    """

    takes_transform: bool = False
    """Whether :meth:`forward` takes ``transform=``."""
    takes_share: bool = False
    """Whether :meth:`forward` takes ``share=``, the probability with which each edge of a drawn sub-graph is there (a
    number, or ``[E]``): for sums over what is read that nothing normalises."""
    complete_only: bool = False
    """Whether it is for complete graphs only, so that no sub-graph can be drawn for it."""
    reads_row_by_row: bool = False
    """Whether what a token becomes depends on nothing but what it reads itself, so that it can be computed alone, later
    than the others (no norm over a whole graph, no new edge rows that others need)."""

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One step of attention.

        Args:
            x: ``[..., N, width]`` token rows.
            graph: Square graph over the N tokens, or with a leading dimension ``[B]`` one for each batch entry of an
                ``x`` ``[B, N, width]``.
            edge: ``[E, edge_width]`` edge rows in the caller's order, for mechanisms that use them.

        Returns:
            New token rows ``[..., N, width]`` and new edge rows ``[E, edge_width]`` (``None`` where there are none).
        """
        raise NotImplementedError


MECHANISMS: Registry[type[Mechanism]] = Registry("mechanism")
MECHANISMS.add("egt", "graphattn.mechanisms.egt:EGTAttention")
MECHANISMS.add("connectivity", "graphattn.mechanisms.connectivity:Connectivity")
MECHANISMS.add("gated_gcn", "graphattn.mechanisms.gated_gcn:GatedGCN")
MECHANISMS.add("graph_transformer", "graphattn.mechanisms.graph_transformer:GraphTransformerAttention")
MECHANISMS.add("graph_window", "graphattn.mechanisms.graph_window:GraphWindowAttention")
MECHANISMS.add("infsa", "graphattn.mechanisms.infsa:InfSA")
MECHANISMS.add("linear_infsa", "graphattn.mechanisms.linear_infsa:LinearInfSA")
MECHANISMS.add("multihead", "graphattn.mechanisms.multihead:MultiheadAttention")
MECHANISMS.add("ssa", "graphattn.mechanisms.ssa:ssa")
MECHANISMS.add("sparsifiner", "graphattn.mechanisms.sparsifiner:Sparsifiner")


def head_width(width: int, heads: int) -> int:
    """Channels of one head.

    Raises:
        ArgumentError: If heads do not divide the width.
    """
    if width < 1 or heads < 1 or width % heads:
        raise ArgumentError(f"width must be a positive multiple of heads, got width={width}, heads={heads}")
    return width // heads


def check_rows(x: Tensor, graph: TokenGraph, width: int, transform: Transform | None = None) -> None:
    """Raise unless ``x`` is ``[..., N, width]`` for the N tokens of a square graph; with a transform, for N targets."""
    check_call(x, graph)
    tokens = graph.num_tokens if transform is None else graph.num_targets
    if x.dim() < 2 or x.shape[-1] != width or x.shape[-2] != tokens:
        raise ArgumentError(f"x must be [..., {tokens}, {width}], tokens and width, got {list(x.shape)}")


def check_call(x: object, graph: object) -> None:
    """Raise unless ``x`` is a floating tensor and ``graph`` a TokenGraph: the two are easily swapped."""
    check_graph(graph)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(f"x must be a floating tensor [..., N, width], got {got}")


def check_copies(x: Tensor, graph: TokenGraph) -> None:
    """Raise unless a graph with leading dimensions has ``[B]`` alone, for the entries of ``x`` ``[B, N, width]``."""
    if graph.leading and (graph.leading_axes != "b" or tuple(x.shape[:-2]) != tuple(graph.leading)):
        raise ArgumentError(
            f"graph must have no leading dimensions, or one for each entry of x [B, N, width]; got "
            f"{list(graph.leading)} ({graph.leading_axes!r}) and x {list(x.shape)}"
        )


def check_edge(edge: Tensor | None, layer: nn.Linear | None) -> None:
    """Raise unless there are edge rows as wide as its layer takes where the mechanism has one, and only there."""
    if (edge is None) != (layer is None):
        made = "without" if layer is None else f"with edge_width={layer.in_features}, so edge is needed;"
        got = None if edge is None else list(edge.shape)
        raise ArgumentError(f"this mechanism was made {made} edge rows, got edge={got}")
    if edge is not None and layer is not None and (edge.dim() < 2 or edge.shape[-1] != layer.in_features):
        raise ArgumentError(f"edge must be [..., E, {layer.in_features}], got {list(edge.shape)}")


def drop_seed(module: nn.Module, p: float, like: Tensor) -> tuple[float, Tensor | None]:
    """Dropout probability and seed of one call: nothing is drawn in evaluation or at p = 0."""
    if p == 0.0 or not module.training:
        return 0.0, None
    with torch.no_grad():
        return p, draw_seed(device=like.device)
