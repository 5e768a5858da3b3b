"""Token graphs from and to what other libraries call a graph; :func:`as_token_graph` takes them all.

Matrices are in :mod:`graphattn.graph.matrix`, DGL's and NetworkX's graphs in :mod:`graphattn.graph.dgl_graphs` and
:mod:`graphattn.graph.networkx_graphs`. Other libraries are told by the looks of their objects and imported only to make
one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import check
from graphattn.graph.csr import Csr
from graphattn.graph.dgl_graphs import from_dgl, to_dgl
from graphattn.graph.edges import in_members
from graphattn.graph.matrix import (
    from_adj_t,
    is_matrix,
    sparse_values,
    to_dense,
    to_scipy,
    to_torch_sparse,
)
from graphattn.graph.networkx_graphs import from_networkx, networkx_attributes, to_networkx
from graphattn.graph.token_graph import TokenGraph
from graphattn.optional import require

__all__ = [
    "as_token_graph",
    "from_adj_t",
    "from_dgl",
    "from_networkx",
    "from_pyg",
    "networkx_attributes",
    "sparse_values",
    "to_dense",
    "to_device",
    "to_dgl",
    "to_networkx",
    "to_pyg",
    "to_scipy",
    "to_torch_sparse",
]


def as_token_graph(
    edges: Any,
    *,
    num_targets: int | None = None,
    num_sources: int | None = None,
    ptr: Tensor | None = None,
    validate: bool = True,
) -> TokenGraph:
    """The graph that a layer was given, in whatever form.

    Args:
        edges: A :class:`TokenGraph` (passed through); ``edge_index [2, E]``; PyG ``EdgeIndex`` (its sorted order is
            used, not sorted again); a *transposed* adjacency as torch.sparse, ``SparseTensor``, SciPy or boolean
            mask; PyG ``Data`` or ``Batch``.
        num_targets: Number of targets; default: what ``edges`` says (an ``edge_index``: its largest index plus
            one).
        num_sources: Number of sources; likewise.
        ptr: ``[B + 1]`` members of a square batch; default: what ``edges`` says.
        validate: Check an ``edge_index`` (one pass and, on CUDA, a synchronisation).

    Returns:
        The graph; edge tensors are in the order of ``edge_index`` or of the stored entries
        (:func:`sparse_values`).

    Raises:
        ArgumentTypeError: If ``edges`` is nothing that holds a graph.
        ArgumentError: If its sizes are not the sizes given.
    """
    if isinstance(edges, TokenGraph):
        graph = edges
    elif is_matrix(edges):
        graph = from_adj_t(edges)
    elif isinstance(edges, Tensor):
        if _is_edge_index_class(edges):
            return _from_edge_index_class(edges, num_targets, num_sources, ptr, validate)
        return TokenGraph.from_edge_index(
            edges, num_targets=num_targets, num_sources=num_sources, ptr=ptr, validate=validate
        )
    elif _is_pyg_data(edges):
        graph = from_pyg(edges)
    else:
        raise ArgumentTypeError(
            "edges must be a TokenGraph, an edge_index [2, E], an EdgeIndex, a sparse transposed adjacency, a "
            f"boolean mask or a PyG Data, got {type(edges).__name__} (NetworkX and DGL: TokenGraph.from_networkx, "
            "from_dgl)"
        )
    _check_sizes(num_targets, num_sources, graph.num_targets, graph.num_sources)
    return graph if ptr is None or graph is edges else _with_members(graph, ptr, validate)


def from_pyg(data: Any) -> TokenGraph:
    """The graph of a PyG ``Data`` or ``Batch``: its ``edge_index``, or else its ``adj_t``.

    Members come from ``ptr``, or else from a sorted ``batch``.
    """
    if not _is_pyg_data(data):
        hint = "; give one edge type of it" if hasattr(data, "edge_types") else ""
        raise ArgumentTypeError(f"data must be a PyG Data with edge_index or adj_t, got {type(data).__name__}{hint}")
    ptr, num_tokens = getattr(data, "ptr", None), data.num_nodes
    if ptr is None and getattr(data, "batch", None) is not None:
        if bool((data.batch.diff() < 0).any()):
            raise ArgumentError("data.batch must ascend: the tokens of a member stand together")
        ptr = _ptr_from_sizes(data.batch.bincount())
    edges = getattr(data, "edge_index", None)
    if edges is None:
        edges = data.adj_t
    return as_token_graph(edges, num_targets=num_tokens, num_sources=num_tokens, ptr=ptr)


def to_device(graph: TokenGraph, device: torch.device | str, non_blocking: bool = False) -> TokenGraph:
    """The graph on another device; what is built is moved, what is not is built there."""
    if torch.empty(0, device=device).device == graph.device:
        return graph
    return _pytree.tree_map(lambda tensor: tensor.to(device, non_blocking=non_blocking), graph)


def to_pyg(graph: TokenGraph, **attributes: Tensor) -> Any:
    """A PyG ``Data``, or for a ragged batch a ``Batch`` with ``batch`` and ``ptr``."""
    data = require("torch_geometric.data", extra="pyg")
    _need_plain_square(graph, "to_pyg")
    fields = {"edge_index": graph.edge_index, "num_nodes": graph.num_targets, **attributes}
    if graph.target_ptr is None:
        return data.Data(**fields)
    return data.Batch(batch=graph.target_batch, ptr=graph.target_ptr, **fields)


def _ptr_from_sizes(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def _is_pyg_data(value: Any) -> bool:
    return hasattr(value, "num_nodes") and any(
        getattr(value, name, None) is not None for name in ("edge_index", "adj_t")
    )


def _is_edge_index_class(edges: Tensor) -> bool:
    return type(edges) is not Tensor and hasattr(edges, "get_csc") and hasattr(edges, "is_sorted_by_col")


def _from_edge_index_class(
    edges: Any, num_targets: int | None, num_sources: int | None, ptr: Tensor | None, validate: bool
) -> TokenGraph:
    """PyG's ``EdgeIndex``: rows are sources, so its CSC is our CSR."""
    known_sources, known_targets = edges.sparse_size()
    num_targets = known_targets if num_targets is None else num_targets
    num_sources = known_sources if num_sources is None else num_sources
    plain = edges.as_tensor()
    # Sorted, or sorted once and remembered; otherwise sorting here is as good as sorting there.
    sorted_already = edges.is_sorted_by_col or getattr(edges, "_T_perm", None) is not None
    if sorted_already and not torch.compiler.is_compiling():
        (rowptr, col), edge_id = edges.get_csc()
        # EdgeIndex promises nothing about the order of sources within a target.
        if check.rows_ascend(rowptr, col):
            num_targets, num_sources = check.resolve_sizes(plain, None, num_targets, num_sources, ptr, ptr)
            if validate:
                check.check_edge_index(plain, num_targets, num_sources)
            # EdgeIndex may have guessed its size: targets up to the last that has an edge.
            missing = max(num_targets + 1 - rowptr.shape[0], 0)
            rowptr = torch.cat([rowptr[: num_targets + 1], rowptr[-1:].expand(missing)])
            csr = Csr(rowptr, col, edge_id)
            graph = TokenGraph(csr, num_targets=num_targets, num_sources=num_sources)
            return graph if ptr is None else _with_members(graph, ptr, validate)
    return TokenGraph.from_edge_index(
        plain, num_targets=num_targets, num_sources=num_sources, ptr=ptr, validate=validate
    )


def _with_members(graph: TokenGraph, ptr: Tensor, validate: bool) -> TokenGraph:
    if validate:
        check.check_ptrs(ptr, ptr, graph.num_targets, graph.num_sources, graph.device)
        check.check_members(graph.edge_index, ptr, ptr)
    return in_members(graph, ptr, ptr)


def _check_sizes(
    num_targets: int | None, num_sources: int | None, found_targets: int | None, found_sources: int | None
) -> None:
    for name, expected, found in (
        ("targets", num_targets, found_targets),
        ("sources", num_sources, found_sources),
    ):
        if expected is not None and found is not None and expected != found:
            raise ArgumentError(f"edges must have num_{name} {name}, {expected}, but they say {found}")


def _need_plain_square(graph: TokenGraph, what: str) -> None:
    graph._need_square(what)
    if graph.leading:
        raise ArgumentError(f"{what} needs a graph without leading dimensions, got {list(graph.leading)}")
