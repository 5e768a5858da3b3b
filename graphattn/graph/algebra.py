"""Graphs from graphs: transpose, self-loops, symmetry, sub-graphs; set operations from
:mod:`graphattn.graph.edge_sets`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.csr import Csr, sort_by_target
from graphattn.graph.edge_sets import coalesce, compose, difference, intersection, power, union
from graphattn.graph.token_graph import TokenGraph

if TYPE_CHECKING:
    from graphattn.graph.pattern import Pattern

__all__ = [
    "coalesce",
    "compose",
    "connected_components",
    "difference",
    "has_duplicates",
    "has_self_loops",
    "intersection",
    "is_symmetric",
    "power",
    "restrict",
    "reverse_edge",
    "sample",
    "select",
    "symmetrize",
    "transpose",
    "union",
    "with_self_loops",
    "without_self_loops",
]


def transpose(graph: TokenGraph) -> TokenGraph:
    """Sources and targets exchanged; edge ``e`` stays edge ``e``."""
    if graph.pattern is not None:
        return graph.pattern.transposed()
    csr, csc = graph.csr, graph.csc
    edge_id = csc.transpose_id
    if csr.edge_id is not None:
        edge_id = csr.edge_id.index_select(0, edge_id)
    return TokenGraph(
        Csr(csc.colptr, csc.row, edge_id),
        num_targets=graph.num_sources,
        num_sources=graph.num_targets,
        target_ptr=graph.source_ptr,
        source_ptr=graph.target_ptr,
        leading=graph.leading,
        leading_axes=graph.leading_axes,
    )


def symmetrize(graph: TokenGraph) -> TokenGraph:
    """Each edge and its reverse, once, target-major with ascending sources."""
    graph._need_square("symmetrize")
    return union(graph, transpose(graph))


def with_self_loops(graph: TokenGraph) -> TokenGraph:
    """Every token reads itself exactly once; new loops come after the edges that are there."""
    graph._need_square("with_self_loops")
    _need_one_side(graph, "with_self_loops")
    if graph.pattern is not None and not graph.leading:
        from graphattn.graph.pattern import Union

        return Union(graph.pattern, _loops(graph), graph.target_ptr, graph.source_ptr)
    if graph.leading:
        raise ArgumentError(
            "with_self_loops needs a graph without leading dimensions, got "
            f"{list(graph.leading)}; add the loops to each graph before stacking"
        )
    loop = graph.row == graph.col
    again = torch.zeros_like(loop)
    again[1:] = loop[1:] & (graph.col[1:] == graph.col[:-1]) & (graph.row[1:] == graph.row[:-1])
    if bool(again.any()):
        graph = _select(graph, ~again)
        loop = graph.row == graph.col
    missing = torch.ones(graph.num_targets, dtype=torch.bool, device=graph.device)
    missing[graph.row[loop].long()] = False
    token = missing.nonzero().flatten()
    source, target = torch.cat([graph.edge_index, token.expand(2, -1)], dim=1)
    csr = sort_by_target(source, target, graph.num_targets, graph.num_sources)
    return _like(graph, csr)


def without_self_loops(graph: TokenGraph) -> TokenGraph:
    """No token reads itself; the other edges keep their order."""
    graph._need_square("without_self_loops")
    if graph.pattern is not None and not graph.leading:
        from graphattn.graph.pattern import Difference

        return Difference(graph.pattern, _loops(graph), graph.target_ptr, graph.source_ptr)
    return _select(graph, ~_is_loop(graph))


def select(graph: TokenGraph, keep: Tensor) -> TokenGraph:
    """The edges whose entry in ``keep`` is true; order kept.

    Args:
        graph: Any graph.
        keep: Boolean ``[E]``, in the caller's edge order.
    """
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        got = keep.dtype if isinstance(keep, Tensor) else type(keep).__name__
        raise ArgumentTypeError(f"keep must be a boolean tensor [E], got {got}")
    if keep.shape != (graph.num_edges,):
        raise ArgumentError(f"keep must have shape [{graph.num_edges}], got {list(keep.shape)}")
    if keep.device != graph.device:
        raise ArgumentError(f"keep must be on the device of the graph, {graph.device}, got {keep.device}")
    return _select(graph, keep if graph.edge_id is None else keep.index_select(0, graph.edge_id))


def sample(graph: TokenGraph, keep: float, generator: torch.Generator | None = None) -> TokenGraph:
    """Each edge kept with probability ``keep``, independently; order kept.

    Args:
        graph: Any graph.
        keep: Probability in 0..1.
        generator: Source of randomness; default: torch's global one on the device of the graph.
    """
    if not 0.0 <= keep <= 1.0:
        raise ArgumentError(f"keep must be a probability in 0..1, got {keep}")
    device = graph.device if generator is None else generator.device
    drawn = torch.rand(graph.num_edges, generator=generator, device=device) < keep
    return select(graph, drawn.to(graph.device))


def restrict(graph: TokenGraph, tokens: Tensor) -> TokenGraph:
    """The sub-graph induced by ``tokens``, renumbered in the order given; the edges keep their order.

    Args:
        graph: A square graph without leading dimensions.
        tokens: Different token indices ``[n]``, or a boolean mask ``[N]``.

    Returns:
        A graph of ``n`` tokens. A batch keeps its members (those without a token become empty).
    """
    graph._need_square("restrict")
    _need_one_copy(graph, "restrict")
    _need_one_side(graph, "restrict")
    tokens = _token_indices(graph, tokens)
    position = torch.full((graph.num_targets,), -1, dtype=torch.int64, device=graph.device)
    position[tokens] = torch.arange(tokens.shape[0], device=graph.device)
    if int((position >= 0).sum()) != tokens.shape[0]:
        raise ArgumentError("tokens must differ from each other, got some token more than once")
    edges = position[graph.edge_index]
    edges = edges[:, (edges >= 0).all(0)]
    ptr = None
    if graph.target_ptr is not None:
        member = graph.target_batch[tokens]
        if bool((member[1:] < member[:-1]).any()):
            raise ArgumentError("tokens of a batch must keep its members together and in their order")
        sizes = torch.bincount(member, minlength=graph.num_members)
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return TokenGraph.from_edge_index(edges, tokens.shape[0], ptr=ptr, validate=False)


def reverse_edge(graph: TokenGraph) -> Tensor:
    """For each edge ``s -> t`` the edge ``t -> s``; of duplicates the first goes with the first.

    Returns:
        int64 ``[E]``, in the caller's edge order.

    Raises:
        ArgumentError: If some edge has no reverse.
    """
    graph._need_square("reverse_edge")
    if not torch.compiler.is_compiling() and not is_symmetric(graph):
        source, target = _edge_without_reverse(graph)
        raise ArgumentError(
            f"reverse_edge needs a symmetric graph, but the edge {source} -> {target} has no reverse (or not "
            "as many as there are duplicates of it); symmetrize() adds what is missing"
        )
    # Sorted by (target, source) and by (source, target), a symmetric edge list reads the same with ends
    # exchanged, so that equal positions are reverses of each other.
    reverse = graph.csc.transpose_id.long()
    if graph.edge_id is None:
        return reverse
    edge_id = graph.edge_id.long()
    return torch.empty_like(reverse).index_copy_(0, edge_id, edge_id.index_select(0, reverse))


def is_symmetric(graph: TokenGraph) -> bool:
    """Whether each edge is there as often as its reverse (``False`` for a bipartite graph)."""
    if not graph.is_square:
        return False
    if graph.pattern is not None and graph.pattern.known_symmetric:
        return True
    return torch.equal(graph.csr.rowptr, graph.csc.colptr) and torch.equal(graph.csr.col, graph.csc.row)


def has_self_loops(graph: TokenGraph) -> bool:
    """Whether some token reads itself (``False`` for a bipartite graph)."""
    return graph.is_square and bool(_is_loop(graph).any())


def has_duplicates(graph: TokenGraph) -> bool:
    """Whether some edge is there more than once."""
    if graph.pattern is not None:
        return False
    same = (graph.col[1:] == graph.col[:-1]) & (graph.row[1:] == graph.row[:-1])
    return bool(same.any())


def connected_components(graph: TokenGraph) -> Tensor:
    """The component of each token, where edges connect both ways (weak components).

    Computed on the CPU by SciPy.

    Returns:
        int64 ``[N]``, numbered from 0 in the order of each component's first token.
    """
    graph._need_square("connected_components")
    _need_one_copy(graph, "connected_components")
    from scipy.sparse import csgraph

    from graphattn.graph import convert

    if graph.num_targets == 0:
        return torch.zeros(0, dtype=torch.int64, device=graph.device)
    _, label = csgraph.connected_components(convert.to_scipy(graph), directed=True, connection="weak")
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(first.shape[0])
    return torch.from_numpy(rank[inverse].astype(np.int64)).to(graph.device)


# --- helpers ----------------------------------------------------------------------------------------------


def _like(graph: TokenGraph, csr: Csr) -> TokenGraph:
    return TokenGraph(
        csr,
        num_targets=graph.num_targets,
        num_sources=graph.num_sources,
        target_ptr=graph.target_ptr,
        source_ptr=graph.source_ptr,
        leading=graph.leading,
        leading_axes=graph.leading_axes,
    )


def _select(graph: TokenGraph, keep: Tensor) -> TokenGraph:
    """Keep edges by their position in CSR."""
    csr = graph.csr
    kept = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
    rowptr = kept.index_select(0, csr.rowptr).to(csr.rowptr.dtype)
    edge_id = None
    if csr.edge_id is not None:
        in_order = torch.empty_like(keep).index_copy_(0, csr.edge_id.long(), keep)
        edge_id = (in_order.cumsum(0) - 1).to(csr.edge_id.dtype).index_select(0, csr.edge_id[keep])
    return _like(graph, Csr(rowptr, csr.col[keep], edge_id))


def _is_loop(graph: TokenGraph) -> Tensor:
    return graph.row == graph.col  # copies are numbered alike on both sides of a square graph


def _loops(graph: TokenGraph) -> Pattern:
    from graphattn.graph.patterns import window

    return window(graph.num_targets, 0, device=graph.device)


def _need_one_copy(graph: TokenGraph, what: str) -> None:
    if graph.leading:
        raise ArgumentError(f"{what} needs a graph without leading dimensions, got {list(graph.leading)}")


def _need_one_side(graph: TokenGraph, what: str) -> None:
    """Bipartite members may add up to as many targets as sources."""
    if graph.source_ptr is not graph.target_ptr and not torch.equal(graph.target_batch, graph.source_batch):
        raise ArgumentError(f"{what} needs members whose targets and sources are the same tokens, got other members")


def _token_indices(graph: TokenGraph, tokens: Tensor) -> Tensor:
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dim() != 1:
        got = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ArgumentTypeError(f"tokens must be indices [n] or a boolean mask [N], got {got}")
    if tokens.device != graph.device:
        raise ArgumentError(f"tokens must be on the device of the graph, {graph.device}, got {tokens.device}")
    size = graph.num_targets
    if tokens.dtype == torch.bool:
        if tokens.shape[0] != size:
            raise ArgumentError(f"a boolean tokens mask must have shape [{size}], got {list(tokens.shape)}")
        return tokens.nonzero().flatten()
    if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= size):
        raise ArgumentError(f"tokens must lie in 0..{size - 1}, got {int(tokens.min())}..{int(tokens.max())}")
    return tokens.long()


def _edge_without_reverse(graph: TokenGraph) -> tuple[int, int]:
    edges = graph.edge_index
    width = graph.num_copies * graph.num_sources
    forward, count = torch.unique(edges[1] * width + edges[0], return_counts=True)
    backward = (forward % width) * width + forward // width
    at = torch.searchsorted(forward, backward).clamp_(max=forward.shape[0] - 1)
    lacks = (forward[at] != backward) | (count[at] < count)
    key = int(forward[lacks][0])
    return key % width, key // width
