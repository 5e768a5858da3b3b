"""One number for each token, from what the layers of a model weighed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.batch import side_by_side
from graphattn.graph.members import Members
from graphattn.insight.centrality import eigenvector, expected_visits, katz, pagerank
from graphattn.insight.record import LayerRecord

__all__ = ["RELEVANCES", "token_relevance"]


def _received(graph: TokenGraph, weights: Tensor) -> Tensor:
    """How much each source is read in one hop: the column sums of the attention matrix."""
    by_edge = weights.movedim(-2, 0)
    total = by_edge.new_zeros(graph.num_sources, *by_edge.shape[1:])
    return total.index_add(0, graph.edge_index[0].long(), by_edge).movedim(0, -2)


def _first(graph: TokenGraph, weights: Tensor) -> Tensor:
    """How much the first token of its member, the class token of a vision transformer, reads each source."""
    first = torch.isin(graph.edge_index[1], Members.of_targets(graph).ptr[:-1])
    return _received(graph, weights * first.to(weights).unsqueeze(-1))


RELEVANCES: dict[str, Callable[[TokenGraph, Tensor], Tensor]] = {
    "received": _received,
    "first": _first,
    "eigenvector": eigenvector,
    "katz": katz,
    "pagerank": pagerank,
    "visits": expected_visits,
}
"""Ways to turn the weights of a layer, ``[..., E, H]``, into a number for each source, ``[..., S, H]``."""


def _by_layer(entry: LayerRecord, how: str) -> Tensor:
    """A number for each source, ``[..., S, H]``."""
    if entry.sources is not None:
        return entry.sources
    assert entry.weights is not None
    found = RELEVANCES[how](side_by_side(entry.graph), entry.weights)
    if not entry.graph.leading:
        return found
    found = found.unflatten(0, (*entry.graph.leading, entry.graph.num_sources))
    return found.squeeze(-1).mT if entry.graph.leading_axes.endswith("h") else found


def token_relevance(
    layers: Sequence[LayerRecord], how: str = "pagerank", *, over: Literal["last", "mean"] = "mean"
) -> Tensor:
    """How central each token is, averaged over heads and layers.

    Each layer and head counts the same: its numbers are scaled to the sum 1 first. Where a layer has one score for each
    source (Linear-InfSA), that is its relevance, whatever ``how`` says: where all targets read the same, all of these
    would be increasing functions of it.

    Args:
        layers: From :func:`graphattn.insight.record`, all on graphs of one size.
        how: ``"received"`` (one hop), ``"first"`` (what the class token reads), ``"eigenvector"``, ``"katz"``,
            ``"pagerank"`` or ``"visits"``, with the defaults of :mod:`graphattn.insight.centrality`.
        over: Of which layers: the mean, or the last one alone.

    Returns:
        ``[..., N]``, of sum 1 (0 where nobody reads anything).

    Raises:
        ArgumentError: If there is no layer, their graphs differ in size, or ``how`` or ``over`` is unknown.
    """
    if how not in RELEVANCES:
        raise ArgumentError(f"how must be one of {sorted(RELEVANCES)}, got {how!r}")
    if over not in ("last", "mean"):
        raise ArgumentError(f"over must be 'last' or 'mean', got {over!r}")
    if not layers:
        raise ArgumentError("layers must hold at least one entry of graphattn.insight.record, got none")
    found = []
    for entry in layers[-1:] if over == "last" else layers:
        heads = _by_layer(entry, how)
        total = heads.sum(-2, keepdim=True)
        found.append(torch.where(total > 0, heads / total, 0.0).mean(-1))
    if len({numbers.shape for numbers in found}) > 1:
        sizes = [numbers.shape[-1] for numbers in found]
        raise ArgumentError(
            f"layers must be on graphs of one size, got {sizes} tokens; over='last' takes one layer alone"
        )
    return torch.stack(found).mean(0)
