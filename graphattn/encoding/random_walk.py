"""Random walk encoding: how likely a walk is to be back where it began."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from graphattn.encoding._structure import (
    CsrMatrix,
    adjacency,
    check_count,
    check_dtype,
    check_graph,
    diagonal_block,
    member_ptr,
    one_thread,
)
from graphattn.graph import TokenGraph

__all__ = ["random_walk_pe"]

_DENSE_LIMIT = 1000  # tokens of a member up to which P^t is a dense matrix
_CHUNK_NUMBERS = 1 << 22  # numbers of P^t held at a time beyond that


def random_walk_pe(graph: TokenGraph, steps: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Return probabilities of a random walk after 1, 2, ..., ``steps`` steps.

    From `"Graph Neural Networks with Learnable Structural and Positional Representations"
    <https://arxiv.org/abs/2110.07875>`_: column ``t`` is the diagonal of :math:`P^t`, :math:`P = A D^{-1}`,
    with :math:`A[\text{target}, \text{source}]` the number of edges and :math:`D` the out-degree of the
    source: the walk follows edges from source to target, each with equal probability, and ends where there is
        none. Self-loops are
    steps, duplicate edges count as often as they stand there. Needs no sign and no basis to be chosen.

    Args:
        graph: Square graph of ``N`` tokens, one or a batch, directed or not.
        steps: Number of columns.
        dtype: Of the result; computed in float64.

    Returns:
        ``[N, steps]`` on the graph's device. A token without edges has zeros.

    Raises:
        ArgumentTypeError: If an argument has the wrong type.
        ArgumentError: If ``steps < 1`` or the graph is bipartite or has leading dimensions.
    """
    check_graph(graph)
    check_count("steps", steps)
    check_dtype(dtype)
    matrix = adjacency(graph)
    degree = np.asarray(matrix.sum(axis=0)).ravel()
    walk = (matrix @ sparse.diags(1.0 / np.maximum(degree, 1.0))).tocsr()

    pe = np.empty((graph.num_targets, steps))
    ptr = member_ptr(graph)
    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        block = diagonal_block(walk, start, stop)
        returns = _dense_returns if stop - start <= _DENSE_LIMIT else _sparse_returns
        pe[start:stop] = returns(block, steps)
    return torch.from_numpy(pe).to(graph.device, dtype)


# diag(P^(a + b))_i = sum_j (P^a)_ij (P^b)_ji, so powers up to half of the steps are enough.


def _dense_returns(walk: CsrMatrix, steps: int) -> np.ndarray:
    matrix = torch.from_numpy(walk.toarray())
    power, columns = matrix, [matrix.diagonal()]
    with one_thread():
        while len(columns) < steps:
            columns.append((power * power.T).sum(1))
            if len(columns) < steps:
                power, previous = power @ matrix, power
                columns.append((power * previous.T).sum(1))
    return torch.stack(columns, dim=1).numpy()


def _sparse_returns(walk: CsrMatrix, steps: int) -> np.ndarray:
    """Rows of P^t and of its transpose, some at a time: on a sparse graph they stay sparse for the first
    steps."""
    size = walk.shape[0]
    transposed = walk.T.tocsr()
    result = np.empty((size, steps))
    rows = max(1, _CHUNK_NUMBERS // size)
    for start in range(0, size, rows):
        chunk = slice(start, start + rows)
        ahead, behind = walk[chunk], transposed[chunk]  # ahead_ij = (P^a)_ij, behind_ij = (P^b)_ji
        columns = [walk.diagonal()[chunk]]
        while len(columns) < steps:
            columns.append(_row_dot(ahead, behind))
            if len(columns) < steps:
                ahead = ahead @ walk
                columns.append(_row_dot(ahead, behind))
                behind = behind @ transposed
        result[chunk] = np.stack(columns, axis=1)
    return result


def _row_dot(a: CsrMatrix, b: CsrMatrix) -> np.ndarray:
    return np.asarray(a.multiply(b).sum(axis=1)).ravel()
