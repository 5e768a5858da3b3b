"""What every encoding needs of a graph: checks, members, and the adjacency as a SciPy matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy import sparse

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph

__all__ = [
    "CsrMatrix",
    "adjacency",
    "check_choice",
    "check_count",
    "check_dtype",
    "check_graph",
    "diagonal_block",
    "member_ptr",
    "one_thread",
    "undirected",
]

CsrMatrix = Any  # scipy.sparse.csr_matrix, which has no stubs


def check_graph(graph: TokenGraph) -> None:
    """A square graph without leading dimensions, or one clear error."""
    if not isinstance(graph, TokenGraph):
        raise ArgumentTypeError(
            f"graph must be a TokenGraph, got {type(graph).__name__}; "
            "make one with TokenGraph.from_edge_index(edge_index, num_tokens)"
        )
    if graph.leading:
        raise ArgumentError(
            f"graph must have no leading dimensions, got {list(graph.leading)}; encode each graph apart"
        )
    if not graph.is_square:
        raise ArgumentError(
            f"graph must be square (sources and targets are the same tokens), got {graph.num_sources} "
            f"sources and {graph.num_targets} targets"
        )


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """An int (not a bool) of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ArgumentError(f"{name} must be at least {minimum}, got {value}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """One of a few values."""
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_dtype(dtype: torch.dtype) -> None:
    """A floating dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ArgumentTypeError(f"dtype must be a floating torch dtype, got {dtype!r}")


def member_ptr(graph: TokenGraph) -> np.ndarray:
    """int64 ``[B + 1]``: first token of each member, ``[0, N]`` for a single graph."""
    if graph.target_ptr is None:
        return np.array([0, graph.num_targets], dtype=np.int64)
    return graph.target_ptr.cpu().numpy().astype(np.int64)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's CPU operations: matrices of a few hundred rows gain nothing from more, and where
    other processes share the cores, threads that wait for each other cost ten times the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def adjacency(graph: TokenGraph) -> CsrMatrix:
    """float64 CSR ``[N, N]`` with ``A[target, source]`` = number of edges source -> target."""
    rowptr, col = graph.rowptr.cpu().numpy(), graph.col.cpu().numpy()
    size = graph.num_targets
    matrix = sparse.csr_matrix((np.ones(len(col)), col, rowptr), shape=(size, size), copy=True)
    matrix.sum_duplicates()
    return matrix


def undirected(matrix: CsrMatrix, directed: str = "symmetrize") -> CsrMatrix:
    """``max(A, A^T)`` without its diagonal, or an error where A is not symmetric and ``directed="error"``."""
    if matrix.diagonal().any():
        matrix = matrix - sparse.diags(matrix.diagonal(), format="csr")
        matrix.eliminate_zeros()
    transposed = matrix.T.tocsr()
    transposed.sort_indices()
    same = (
        np.array_equal(matrix.indptr, transposed.indptr)
        and np.array_equal(matrix.indices, transposed.indices)
        and np.array_equal(matrix.data, transposed.data)
    )
    if same:
        return matrix
    if directed == "error":
        raise ArgumentError(
            'graph must be undirected (each edge with its reverse) when directed="error"; add the reverse '
            'edges with graph.symmetrize() or pass directed="symmetrize"'
        )
    return matrix.maximum(transposed).tocsr()


def diagonal_block(matrix: CsrMatrix, start: int, stop: int) -> CsrMatrix:
    """Rows and columns ``start:stop`` of a block-diagonal matrix; a tenth of the cost of slicing twice."""
    if start == 0 and stop == matrix.shape[0]:
        return matrix
    first, last = matrix.indptr[start], matrix.indptr[stop]
    indices = matrix.indices[first:last] - start
    if len(indices) and (indices.min() < 0 or indices.max() >= stop - start):
        raise ArgumentError(
            f"graph must have no edge between its members, but one joins tokens {start}..{stop - 1} to "
            "another; check target_ptr"
        )
    arrays = matrix.data[first:last], indices, matrix.indptr[start : stop + 1] - first
    return sparse.csr_matrix(arrays, shape=(stop - start, stop - start))
