"""Laplacian positional encoding: the eigenvectors of a graph's Laplacian with the smallest eigenvalues."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from graphattn.encoding import eigen
from graphattn.encoding._structure import (
    CsrMatrix,
    adjacency,
    check_choice,
    check_count,
    check_dtype,
    check_graph,
    diagonal_block,
    member_ptr,
    undirected,
)
from graphattn.encoding.sign import fix_signs, flip_signs
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

__all__ = ["LaplacianEncoding", "laplacian_pe"]

# Tokens of a component up to which it is solved dense. At 1000 (k = 10, one core) dense takes 0.25 s whatever
# the graph, sparse 0.05 to 0.5 s.
_DENSE_LIMIT = 1000


class LaplacianEncoding(NamedTuple):
    """What :func:`laplacian_pe` returns with ``return_eigenvalues=True``."""

    pe: Tensor
    """``[N, k]`` eigenvectors."""
    eigenvalues: Tensor
    """``[N, k]`` eigenvalue of each column, for the component of each token; 0 where padded."""
    group: Tensor
    """int64 ``[N, k]``: columns of one number share an eigenvalue, so only their span means something; -1
    where padded. The last group may go on beyond column ``k``."""


@overload
def laplacian_pe(
    graph: TokenGraph,
    k: int,
    *,
    normalization: str | None = ...,
    sign: str = ...,
    per_component: bool = ...,
    directed: str = ...,
    solver: str = ...,
    generator: torch.Generator | None = ...,
    dtype: torch.dtype = ...,
    return_eigenvalues: Literal[False] = ...,
) -> Tensor: ...


@overload
def laplacian_pe(
    graph: TokenGraph,
    k: int,
    *,
    normalization: str | None = ...,
    sign: str = ...,
    per_component: bool = ...,
    directed: str = ...,
    solver: str = ...,
    generator: torch.Generator | None = ...,
    dtype: torch.dtype = ...,
    return_eigenvalues: Literal[True],
) -> LaplacianEncoding: ...


def laplacian_pe(
    graph: TokenGraph,
    k: int,
    *,
    normalization: str | None = "sym",
    sign: str = "fixed",
    per_component: bool = True,
    directed: str = "symmetrize",
    solver: str = "auto",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    return_eigenvalues: bool = False,
) -> Tensor | LaplacianEncoding:
    r"""Laplacian eigenvectors of the ``k`` smallest non-trivial eigenvalues, a unit vector a column.

    From `"A Generalization of Transformer Networks to Graphs" <https://arxiv.org/abs/2012.09699>`_ (and
    `"Benchmarking Graph Neural Networks" <https://arxiv.org/abs/2003.00982>`_):
    :math:`L = I - D^{-1/2} A D^{-1/2}`, with :math:`A` the number of edges between two tokens and :math:`D`
    its degree, at least 1. Duplicate edges count as often as they stand there; self-loops are ignored. Each
    member of a batch is encoded as it would be alone. An eigenvalue met twice leaves the basis of its
    eigenvectors open: the same input gives the same basis, a renumbered graph need not (``group`` says where;
    :func:`random_walk_pe` has no such freedom).

    Computed in float64 on the CPU: dense for components of up to 1000 tokens, sparse with a fixed start
    beyond.

    Args:
        graph: Square graph of ``N`` tokens, one or a batch.
        k: Number of columns. Where a component has fewer eigenvectors, the rest is 0.
        normalization: ``"sym"`` as above; ``"rw"``: :math:`I - D^{-1} A`; ``None``: :math:`D - A`.
        sign: ``"fixed"``: the entry of largest magnitude is positive (of equals, the first token's), no
            randomness; ``"random"``: a sign drawn for each column and member; ``"random_batch"``: for each
            column only; ``"abs"``: absolute values.
        per_component: Take the eigenvectors of each connected component apart, each without its trivial one.
            ``False`` is the published form: the eigenvectors of the whole member without the first, where in
            a disconnected graph the columns that follow merely tell components apart.
        directed: ``"symmetrize"``: an edge that lacks its reverse counts both ways; ``"error"``: refuse it.
        solver: ``"auto"`` as above, or ``"dense"`` or ``"sparse"``. Dense needs ``n * n`` numbers for ``n``
            tokens; sparse falls back to dense where almost all eigenvectors of a component are asked for.
        generator: Source of random signs, needed for ``sign="random"`` and ``"random_batch"``: an encoding is
            computed once and kept, so its randomness must be the caller's.
        dtype: Of the result.
        return_eigenvalues: Return a :class:`LaplacianEncoding` with eigenvalues and multiplicities.

    Returns:
        ``[N, k]`` on the graph's device, or a :class:`LaplacianEncoding` of three such tensors.

    Raises:
        ArgumentTypeError: If an argument has the wrong type.
        ArgumentError: If ``k < 1``, an option is unknown, the graph is bipartite or has leading dimensions,
            it is directed and ``directed="error"``, or random signs come without a generator.
        BackendError: If the sparse solver does not converge.
    """
    check_graph(graph)
    check_count("k", k)
    check_choice("normalization", normalization, ("sym", "rw", None))
    check_choice("sign", sign, ("fixed", "random", "random_batch", "abs"))
    check_choice("directed", directed, ("symmetrize", "error"))
    check_choice("solver", solver, ("auto", "dense", "sparse"))
    check_dtype(dtype)
    if sign.startswith("random") and generator is None:
        raise ArgumentError(
            f'sign="{sign}" needs a generator, e.g. torch.Generator().manual_seed(0); to draw new signs in '
            "each training step use flip_signs or the SignFlip transform"
        )
    matrix = undirected(adjacency(graph), directed)
    ptr = member_ptr(graph)
    pe, values, group = _eigenvectors(matrix, ptr, k, normalization, per_component, solver)
    result = torch.from_numpy(pe)
    if sign == "abs":
        result = result.abs()
    elif sign != "fixed":
        per = "graph" if sign == "random" else "batch"
        result = flip_signs(result, per, ptr=torch.from_numpy(ptr), generator=generator)
    result = result.to(graph.device, dtype)
    if not return_eigenvalues:
        return result
    return LaplacianEncoding(
        result, torch.from_numpy(values).to(graph.device, dtype), torch.from_numpy(group).to(graph.device)
    )


def _eigenvectors(
    matrix: CsrMatrix, ptr: np.ndarray, k: int, normalization: str | None, per_component: bool, solver: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, values and groups, each ``[N, k]``, of a symmetric adjacency without a diagonal."""
    size = matrix.shape[0]
    order = None
    if per_component:
        # Make every component a run of consecutive tokens; a batch of connected members is so already.
        labels = sparse.csgraph.connected_components(matrix, directed=False)[1]
        if (np.diff(labels) < 0).any():
            order = np.argsort(labels, kind="stable")
            matrix, labels = matrix[order][:, order], labels[order]
        ptr = np.flatnonzero(np.diff(labels, prepend=-1, append=size))

    degree = np.asarray(matrix.sum(axis=1)).ravel()
    clipped = np.maximum(degree, 1.0)
    if normalization is None:
        weight, center, null = matrix, degree, np.ones(size)
    else:
        scale = sparse.diags(clipped**-0.5, format="csr")
        weight, center, null = (scale @ matrix @ scale).tocsr(), np.ones(size), np.sqrt(degree)

    vectors, values, group = np.zeros((size, k)), np.zeros((size, k)), np.full((size, k), -1)
    skip = 0 if per_component else 1  # the trivial vector is deflated, or it is the first found

    def store(start: int, stop: int, found_values: np.ndarray, found: np.ndarray) -> None:
        found_values, found = found_values[skip:], found[:, skip:]
        count = found.shape[1]
        if normalization == "rw":  # D^-1/2 u is an eigenvector of I - D^-1 A
            found = found * clipped[start:stop, None] ** -0.5
            found /= np.linalg.norm(found, axis=0)
        vectors[start:stop, :count] = fix_signs(found)
        values[start:stop, :count] = found_values.clip(min=0.0)  # rounding may go below
        group[start:stop, :count] = _groups(found_values, center[start:stop].max())

    def block(start: int, stop: int) -> eigen.Block:
        trivial = null[start:stop] / np.linalg.norm(null[start:stop]) if per_component else None
        return eigen.Block(diagonal_block(weight, start, stop), center[start:stop], trivial)

    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        length = stop - start
        if length < 2:
            continue  # one token has no vector but the trivial one
        count = min(k, length - 1) + skip
        large = solver == "sparse" or (solver == "auto" and length > _DENSE_LIMIT)
        solve = eigen.smallest_sparse if large and count < length // 2 else eigen.smallest_dense
        store(start, stop, *solve(block(start, stop), count))

    if order is not None:
        back = np.argsort(order)
        vectors, values, group = vectors[back], values[back], group[back]
    return vectors, values, group


def _groups(values: np.ndarray, scale: float) -> np.ndarray:
    """Numbers of the runs of equal values in an ascending array of eigenvalues that reach up to ``2 * scale``."""
    # Relative, because the smallest eigenvalues of a long path differ by less than 1e-6; the floor is rounding.
    larger = np.diff(values) > 1e-6 * np.abs(values[:-1]) + 2e-13 * scale
    return np.concatenate([[0], np.cumsum(larger)])[: len(values)]
