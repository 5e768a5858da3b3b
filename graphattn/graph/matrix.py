"""Token graphs from and to matrices: torch.sparse, SparseTensor, SciPy, dense masks.

Every matrix here is a *transposed* adjacency, as everywhere in PyG: rows are targets, columns are sources. Edges
are the stored entries, in the order in which the matrix stores them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import check
from graphattn.graph.token_graph import TokenGraph

__all__ = [
    "from_adj_t",
    "is_matrix",
    "sparse_values",
    "to_dense",
    "to_scipy",
    "to_torch_sparse",
]

_SPARSE = (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo)


def is_matrix(value: Any) -> bool:
    """Whether :func:`from_adj_t` is meant for this value: a sparse matrix of some kind or a boolean mask."""
    if isinstance(value, Tensor):
        return value.layout != torch.strided or value.dtype == torch.bool
    return _is_sparse_tensor(value) or _is_scipy(value)


def from_adj_t(adjacency: Any) -> TokenGraph:
    """A graph from a transposed adjacency ``[T, S]``.

    Args:
        adjacency: torch.sparse CSR, CSC or COO (an uncoalesced COO matrix is coalesced first: there, duplicates
            stand for a sum), ``torch_sparse.SparseTensor``, SciPy sparse, or a dense boolean mask (True: the target
            may read the source).

    Returns:
        A graph whose edges are the stored entries, zeros included, in the order stored (row-major in all these but
        CSC and SciPy's COO); :func:`sparse_values` gives their values.

    Raises:
        ArgumentTypeError: If it is none of these, or dense and not boolean.
        ArgumentError: If it is not a matrix.
    """
    if isinstance(adjacency, Tensor):
        # Entries may be rows themselves, [T, S, F]: edge features.
        entry_dim = 0 if adjacency.layout == torch.strided else adjacency.dense_dim()
        _need_matrix(adjacency.shape, entry_dim)
        if adjacency.layout == torch.strided:
            return _from_mask(adjacency)
        if adjacency.layout == torch.sparse_csr:
            return _from_csr(adjacency.crow_indices(), adjacency.col_indices(), adjacency.shape[1])
        if adjacency.layout == torch.sparse_csc:
            target, colptr = adjacency.row_indices(), adjacency.ccol_indices()
            return _from_coo(target, _expand(colptr, target), adjacency.shape)
        if adjacency.layout == torch.sparse_coo:
            target, source = adjacency.coalesce().indices()
            rows = torch.arange(adjacency.shape[0] + 1, device=target.device)
            return _from_csr(torch.searchsorted(target.contiguous(), rows), source, adjacency.shape[1])
        raise ArgumentTypeError(f"adjacency must have layout CSR, CSC or COO, got {adjacency.layout}")
    if _is_sparse_tensor(adjacency):
        rowptr, col, _ = adjacency.csr()
        return _from_csr(rowptr, col, adjacency.sparse_sizes()[1])
    if _is_scipy(adjacency):
        _need_matrix(adjacency.shape)
        matrix = _scipy_stored(adjacency)
        if matrix.format == "csr":
            return _from_csr(_copied(matrix.indptr), _copied(matrix.indices), matrix.shape[1])
        return _from_coo(_copied(matrix.row), _copied(matrix.col), matrix.shape)
    if isinstance(adjacency, np.ndarray):
        return from_adj_t(torch.from_numpy(adjacency))
    raise ArgumentTypeError(
        "adjacency must be a torch.sparse matrix, a SparseTensor, a SciPy sparse matrix or a dense boolean mask, "
        f"got {type(adjacency).__name__}"
    )


def sparse_values(adjacency: Any) -> Tensor | None:
    """The values of a sparse matrix in the edge order of :func:`from_adj_t`: edge attributes in PyG's convention.

    Args:
        adjacency: What :func:`from_adj_t` takes; gradients flow back to the values of a torch.sparse matrix.

    Returns:
        ``[E]`` or ``[E, ...]``, or ``None`` where there are none (a mask, a plain ``edge_index``).
    """
    if isinstance(adjacency, Tensor):
        if adjacency.layout == torch.sparse_coo:
            return adjacency.coalesce().values()
        return adjacency.values() if adjacency.layout in _SPARSE else None
    if _is_sparse_tensor(adjacency):
        return adjacency.csr()[2]
    if _is_scipy(adjacency):
        return _copied(_scipy_stored(adjacency).data)
    return None


def to_torch_sparse(graph: TokenGraph, values: Tensor | None = None, layout: torch.layout = torch.sparse_csr) -> Tensor:
    """Transposed adjacency ``[T, S]``, values in the caller's edge order (default: float ones)."""
    _need_no_leading(graph, "to_torch_sparse")
    if layout not in _SPARSE:
        raise ArgumentError(f"layout must be torch.sparse_csr, torch.sparse_csc or torch.sparse_coo, got {layout}")
    values = _check_values(graph, values)
    by_target = _reorder(values, graph.edge_id)
    size = (graph.num_targets, graph.num_sources)
    if layout == torch.sparse_csr:
        with _quiet():
            return torch.sparse_csr_tensor(graph.rowptr, graph.col, by_target, size, check_invariants=False)
    if layout == torch.sparse_csc:
        colptr, row, transpose_id = graph.csc
        by_source = _reorder(by_target, transpose_id)
        with _quiet():
            return torch.sparse_csc_tensor(colptr, row, by_source, size, check_invariants=False)
    indices = torch.stack([graph.row, graph.col]).long()
    coalesced = not graph.has_duplicates
    return torch.sparse_coo_tensor(indices, by_target, size, is_coalesced=coalesced, check_invariants=False)


def to_scipy(graph: TokenGraph, values: Tensor | None = None) -> Any:
    """Transposed adjacency ``[T, S]`` as ``scipy.sparse.csr_array``, values in the caller's edge order (default:
    float ones)."""
    from scipy.sparse import csr_array

    _need_no_leading(graph, "to_scipy")
    values = _reorder(_check_values(graph, values), graph.edge_id).detach()
    arrays = tuple(array.cpu().numpy() for array in (values, graph.col, graph.rowptr))
    return csr_array(arrays, shape=(graph.num_targets, graph.num_sources), copy=True)


def to_dense(graph: TokenGraph) -> Tensor:
    """Boolean ``[..., T, S]``: may the target read the source?"""
    copies, num_targets, num_sources = graph.num_copies, graph.num_targets, graph.num_sources
    dense = torch.zeros(copies * num_targets, num_sources, dtype=torch.bool, device=graph.device)
    dense[graph.row.long(), graph.col.long() % max(num_sources, 1)] = True
    return dense.view(*graph.leading, num_targets, num_sources)


def _need_matrix(shape: Sequence[int], entry_dim: int = 0) -> None:
    if len(shape) - entry_dim != 2:
        raise ArgumentError(
            f"adjacency must be a matrix [targets, sources], got shape {list(shape)}; "
            "for one matrix per head use TokenGraph.per_head"
        )


def _from_csr(rowptr: Tensor, col: Tensor, num_sources: int) -> TokenGraph:
    if rowptr.dtype != col.dtype:
        rowptr = rowptr.to(col.dtype)
    if torch.compiler.is_compiling() or check.rows_ascend(rowptr, col):
        return TokenGraph.from_csr(rowptr, col, num_sources=num_sources)
    return _from_coo(_expand(rowptr, col), col, (rowptr.shape[0] - 1, num_sources))


def _from_coo(target: Tensor, source: Tensor, shape: tuple[int, ...]) -> TokenGraph:
    edge_index = torch.stack([source, target])
    return TokenGraph.from_edge_index(edge_index, num_targets=shape[0], num_sources=shape[1])


def _from_mask(mask: Tensor) -> TokenGraph:
    if mask.dtype != torch.bool:
        raise ArgumentTypeError(
            f"a dense adjacency must be boolean (True: may read), got {mask.dtype}; "
            "pass adjacency != 0, or an edge_index to from_edge_index"
        )
    count = mask.sum(1)
    rowptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    return TokenGraph.from_csr(rowptr, mask.nonzero()[:, 1], num_sources=mask.shape[1], validate=False)


def _expand(ptr: Tensor, like: Tensor) -> Tensor:
    return torch.repeat_interleave(
        torch.arange(ptr.shape[0] - 1, dtype=like.dtype, device=like.device),
        ptr.diff(),
        output_size=like.shape[0],
    )


def _is_sparse_tensor(value: Any) -> bool:
    """A ``torch_sparse.SparseTensor``, told by its face: the package is never needed."""
    return type(value).__name__ == "SparseTensor" and hasattr(value, "sparse_sizes") and hasattr(value, "csr")


def _is_scipy(value: Any) -> bool:
    return type(value).__module__.startswith("scipy.sparse") and hasattr(value, "tocoo")


def _scipy_stored(matrix: Any) -> Any:
    """CSR as it is, everything else as COO in its stored order."""
    return matrix if matrix.format == "csr" else matrix.tocoo(copy=False)


def _copied(array: np.ndarray) -> Tensor:
    """SciPy changes matrices in place (``sum_duplicates``, ``eliminate_zeros``), so graphs share nothing with it."""
    return torch.from_numpy(array.copy())


def _check_values(graph: TokenGraph, values: Tensor | None) -> Tensor:
    if values is None:
        return torch.ones(graph.num_edges, device=graph.device)
    if not isinstance(values, Tensor):
        raise ArgumentTypeError(f"values must be a tensor [E], got {type(values).__name__}")
    if values.shape != (graph.num_edges,):
        raise ArgumentError(f"values must have shape [{graph.num_edges}], got {list(values.shape)}")
    return values


def _reorder(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else values.index_select(0, order)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the note of torch that its compressed layouts are in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tensor support is in beta", category=UserWarning)
        yield


def _need_no_leading(graph: TokenGraph, what: str) -> None:
    if graph.leading:
        raise ArgumentError(f"{what} needs a graph without leading dimensions, got {list(graph.leading)}")
