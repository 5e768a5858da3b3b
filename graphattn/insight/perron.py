"""How near the scores of Linear-InfSA are to the eigenvectors that they stand for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.attention import edge_weights
from graphattn.errors import ArgumentError
from graphattn.insight.centrality import eigenvector
from graphattn.insight.record import LayerRecord
from graphattn.mechanisms.linear_infsa import source_scores

__all__ = ["PerronCosines", "perron_cosines"]


class PerronCosines(NamedTuple):
    """Cosines of the scores of a layer.

    Args:
        left: ``[..., H]`` to the left Perron vector of the rectified scores (how much a token is read).
        right: ``[..., H]`` to the right one (how much it reads).
    """

    left: Tensor
    right: Tensor


def perron_cosines(entry: LayerRecord) -> PerronCosines:
    """Cosines between a layer's Linear-InfSA scores and both Perron vectors of its rectified scores on its graph.

    For a layer of Linear-InfSA, the scores that it used; for any other layer with queries and keys, those that
    Linear-InfSA would have made of them.

    Args:
        entry: From :func:`graphattn.insight.record`.

    Raises:
        ArgumentError: If the layer has no queries and keys, or its graph is not square.
    """
    if entry.q is None or entry.k is None or not entry.graph.is_square:
        raise ArgumentError(f"layer {entry.layer!r} must have queries and keys on a square graph")
    q, k = entry.q.double(), entry.k.double()
    scores = source_scores(entry.graph, q, k) if entry.sources is None else entry.sources.double()
    weights = edge_weights(entry.graph, q, k, score="relu_dot", normalizer="frobenius")
    left, right = (eigenvector(entry.graph, weights, of=side, tolerance=1e-6) for side in ("sources", "targets"))
    return PerronCosines(_cosine(scores, left), _cosine(scores, right))


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(x, y, dim=-2)
