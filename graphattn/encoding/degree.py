"""Degree encoding: how many tokens each token reads, and how many read it."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.encoding._structure import check_choice, check_count, check_graph
from graphattn.graph import TokenGraph

__all__ = ["degree_encoding"]


def degree_encoding(graph: TokenGraph, *, direction: str = "in", max_degree: int | None = None) -> Tensor:
    """Degree of each token as an id for an embedding table.

    The centrality encoding of `"Do Transformers Really Perform Bad for Graph Representation?"
    <https://arxiv.org/abs/2106.05234>`_ embeds both degrees and adds them to the input.

    Args:
        graph: Square graph of ``N`` tokens, one or a batch.
        direction: ``"in"``: edges that end at the token (what it reads); ``"out"``: edges that begin there;
            ``"both"``: one column each.
        max_degree: Larger degrees become this one, so ``max_degree + 1`` rows of a table are enough. Default:
            no limit.

    Returns:
        int64 ``[N]``, or ``[N, 2]`` (in, out) for ``"both"``. Duplicate edges and self-loops count.

    Raises:
        ArgumentTypeError: If an argument has the wrong type.
        ArgumentError: If ``direction`` is unknown, ``max_degree < 0``, or the graph is bipartite or has
            leading dimensions.
    """
    check_graph(graph)
    check_choice("direction", direction, ("in", "out", "both"))
    if max_degree is not None:
        check_count("max_degree", max_degree, minimum=0)
    if direction == "in":
        degree = graph.in_degree
    elif direction == "out":
        degree = graph.out_degree
    else:
        degree = torch.stack([graph.in_degree, graph.out_degree], dim=1)
    return degree.clamp(max=max_degree) if max_degree is not None else degree
