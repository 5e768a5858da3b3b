"""What DGL users hand to a layer, brought into one form and checked."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.dgl_graphs import from_dgl, is_dgl_graph

__all__ = ["check_in_degree", "node_features", "token_graph"]

# By the id of DGL's index, which is immutable but cannot be hashed; an entry goes when its index does.
_KNOWN: dict[int, tuple[weakref.ref[Any], TokenGraph]] = {}


def token_graph(graph: Any) -> TokenGraph:
    """The token graph of a ``DGLGraph``, made once and kept for as long as DGL's structure lives.

    Layers and steps that share a graph share it. Members of a batch are not marked: edges keep them apart.

    Args:
        graph: A ``DGLGraph`` with one edge type, or a :class:`~graphattn.TokenGraph`, which is passed through.

    Raises:
        ArgumentTypeError: If it is neither.
        ArgumentError: If it has several edge types, or leading dimensions.
    """
    if isinstance(graph, TokenGraph):
        if graph.leading:
            raise ArgumentError(
                f"graph must be one graph, got a TokenGraph with leading dimensions {list(graph.leading)}; "
                "graphattn.attend takes those"
            )
        return graph
    if not is_dgl_graph(graph):
        raise ArgumentTypeError(f"graph must be a DGLGraph or a TokenGraph, got {type(graph).__name__}")
    index = getattr(graph, "_graph", None)
    if index is None:
        return from_dgl(graph, members=False)
    key = id(index)
    known = _KNOWN.get(key)
    if known is not None and known[0]() is index:
        return known[1]
    made = from_dgl(graph, members=False)
    _KNOWN[key] = (weakref.ref(index, lambda _: _KNOWN.pop(key, None)), made)
    return made


def node_features(graph: Any, tokens: TokenGraph, feat: Any) -> tuple[Tensor, Tensor | None]:
    """Features of the sources, and of the targets where they are not the first rows of the sources.

    Args:
        graph: As it was given; a block's targets are the first of its sources, and so are those of a
            :class:`~graphattn.TokenGraph` that is not square.
        tokens: The token graph of ``graph``.
        feat: ``[N, ..., F]``, or a pair: ``[N_s, ..., F_s]`` of the sources, ``[N_t, ..., F_t]`` of the targets.

    Raises:
        ArgumentError: If the numbers of rows do not fit.
        ArgumentTypeError: If it is no tensor and no pair of tensors.
    """
    pair = isinstance(feat, (tuple, list))
    if pair and len(feat) != 2:
        raise ArgumentError(f"feat must be a tensor or a pair (sources, targets), got {len(feat)} entries")
    ends = tuple(feat) if pair else (feat,)
    for at, (rows, count) in enumerate(zip(ends, (tokens.num_sources, tokens.num_targets), strict=False)):
        name = f"feat[{at}] ({'source' if at == 0 else 'target'} features)" if pair else "feat"
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise ArgumentTypeError(f"{name} must be a floating tensor, got {got}")
        if rows.dim() < 2 or rows.shape[0] != count:
            raise ArgumentError(f"{name} must be [{count}, ..., F], a row for each node, got {list(rows.shape)}")
    if pair:
        return ends[0], ends[1]
    block = True if isinstance(graph, TokenGraph) else graph.is_block
    if tokens.num_targets > tokens.num_sources or (tokens.num_targets != tokens.num_sources and not block):
        raise ArgumentError(
            f"feat must be a pair (sources, targets) for a bipartite graph of {tokens.num_sources} sources and "
            f"{tokens.num_targets} targets, got one tensor"
        )
    return ends[0], None


def check_in_degree(tokens: TokenGraph) -> None:
    """Raise, as DGL does, if some target reads nobody; what is raised is a ``DGLError``, too, where DGL is loaded."""
    if torch.compiler.is_compiling() or not bool((tokens.rowptr[1:] == tokens.rowptr[:-1]).any()):
        return
    kind: type[Exception] = ArgumentError
    dgl = sys.modules.get("dgl")
    if dgl is not None:
        kind = type("ZeroInDegreeError", (ArgumentError, dgl.DGLError), {})
    empty = int((tokens.in_degree == 0).sum())
    raise kind(
        f"graph must have an in-edge at every node, but {empty} of {tokens.num_targets} have none: attention gives "
        "them exactly 0. Add self-loops (dgl.add_self_loop), or accept it with allow_zero_in_degree=True"
    )
