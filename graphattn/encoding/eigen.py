"""The smallest eigenpairs of graph Laplacians: dense for small blocks, sparse for large ones.

A Laplacian is held as ``L = diag(center) - weight`` with a sparse symmetric ``weight``. Everything is float64
and gives the same bits each time: LAPACK has no random start, and ARPACK gets a fixed one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import linalg as sparse_linalg

from graphattn.encoding._structure import CsrMatrix, one_thread
from graphattn.errors import BackendError

__all__ = ["Block", "smallest_dense", "smallest_sparse"]

_ACCEPT = 1e-9  # largest residual |L u - lambda u|, relative to the bound of the spectrum


class Block(NamedTuple):
    """One symmetric problem: some consecutive tokens."""

    weight: CsrMatrix
    """``[n, n]`` off-diagonal part, negated."""
    center: np.ndarray
    """``[n]`` diagonal."""
    trivial: np.ndarray | None
    """``[n]`` unit vector known to have eigenvalue 0 and left out of the result; ``None``: leave nothing
    out."""

    @property
    def bound(self) -> float:
        """No eigenvalue is larger (Gershgorin)."""
        return 2.0 * float(self.center.max(initial=0.0))

    def dense(self) -> np.ndarray:
        """``[n, n]``: L, the trivial vector moved above every other, so that it never mixes with them."""
        matrix = -self.weight.toarray()
        matrix[np.diag_indices_from(matrix)] += self.center
        if self.trivial is not None:
            matrix += (self.bound + 1.0) * np.outer(self.trivial, self.trivial)
        return matrix


def smallest_dense(block: Block, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` smallest eigenpairs of one block: ``[count]``, ``[n, count]``.

    Blocks are solved one by one and not as a stack: LAPACK takes them so anyway, and MKL rounds differently
    where a matrix of odd size inside a stack begins off an aligned address, so that a batch would differ from
    its members.
    """
    with one_thread():
        values, vectors = torch.linalg.eigh(torch.from_numpy(block.dense()))
    return values[:count].numpy(), vectors[:, :count].numpy()


def smallest_sparse(block: Block, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` smallest eigenpairs of one large block without a dense matrix.

    Lanczos on L itself comes first. It is slow only where the spectrum crowds at 0, which is where small cuts
    part the graph (paths, grids, roads), and just there a sparse factorisation stays sparse: then shift and
    invert.

    Raises:
        BackendError: If neither converges.
    """
    laplacian = scipy.sparse.diags(block.center, format="csr") - block.weight
    bound = max(block.bound, 1.0)
    size = laplacian.shape[0]
    fixed = np.empty((size, 0)) if block.trivial is None else block.trivial[:, None]

    try:
        vectors = _top(lambda x: bound * x - laplacian @ x, fixed, count, tolerance=1e-12, restarts=400)
    except sparse_linalg.ArpackNoConvergence:
        # The shift keeps the factor regular; what it does to the trivial vector is projected away.
        shift = 1e-8 * bound
        try:
            shifted = (laplacian + shift * scipy.sparse.identity(size)).tocsc()
            factor = sparse_linalg.splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0)
            vectors = _top(factor.solve, fixed, count, tolerance=1e-12, restarts=400)
        except (sparse_linalg.ArpackError, RuntimeError, MemoryError) as error:
            raise BackendError(
                f"the sparse eigensolver did not converge on a component of {size} tokens ({error}); "
                'try solver="dense" if it fits in memory, fewer eigenvectors, or random_walk_pe'
            ) from error
    return _rayleigh_ritz(laplacian, vectors, bound)


def _top(
    apply: Callable[[np.ndarray], np.ndarray],
    fixed: np.ndarray,
    count: int,
    *,
    tolerance: float,
    restarts: int,
) -> np.ndarray:
    """Eigenvectors ``[n, count]`` of the largest eigenvalues of a positive operator, orthogonal to
    ``fixed``."""

    def solve(known: np.ndarray, number: int, tol: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        size = known.shape[0]

        def project(x: np.ndarray) -> np.ndarray:
            return x - known @ (known.T @ x)

        operator = sparse_linalg.LinearOperator(
            (size, size), matvec=lambda x: project(apply(project(x.ravel()))), dtype=np.float64
        )
        start = project(np.random.default_rng(seed).standard_normal((size,)))
        krylov = min(size, max(2 * number + 1, 40))
        return sparse_linalg.eigsh(operator, number, which="LA", v0=start, ncv=krylov, tol=tol, maxiter=restarts)

    values, vectors = solve(fixed, count, tolerance, 0)
    # A Krylov space from one vector holds one vector of each eigenspace; rounding brings in the others, but
    # not always in time. So look for one that was missed, and take it in, until there is none; from another vector each
    # time, because the last one has no part in an eigenspace but the one that was found.
    for seed in range(1, count + 1):
        known = np.linalg.qr(np.concatenate([fixed, vectors], axis=1))[0]
        value, vector = solve(known, 1, tolerance, seed)
        lowest = values.argmin()
        if value[0] <= values[lowest] * (1 + 1e-10):
            break
        values[lowest], vectors[:, lowest] = value[0], vector[:, 0]
    return vectors


def _rayleigh_ritz(laplacian: CsrMatrix, vectors: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal vectors and their eigenvalues, ascending; refused if they are not eigenvectors."""
    basis = np.linalg.qr(vectors)[0]
    values, rotation = np.linalg.eigh(basis.T @ (laplacian @ basis))
    vectors = basis @ rotation
    residual = np.abs(laplacian @ vectors - vectors * values).max(initial=0.0)
    if residual > _ACCEPT * bound:
        raise BackendError(
            f"the sparse eigensolver reached a residual of {residual:.1e} only on a component of "
            f'{len(vectors)} tokens; try solver="dense" if it fits in memory'
        )
    return values, vectors
