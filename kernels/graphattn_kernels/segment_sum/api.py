"""Public functions: validation and choice of backend."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import structure as st
from graphattn_kernels._sparse import pick
from graphattn_kernels.segment_sum import ops
from graphattn_kernels.segment_sum.impl import reference
from graphattn_kernels.structure import Structure

__all__ = ["segment_sum", "spread"]


def segment_sum(structure: Structure, rows: Tensor, *, backend: str = "auto") -> Tensor:
    """Sum the rows of each target's in-edges: ``out[t] = sum of rows[e] over edges e = (s -> t)``.

    Args:
        structure: The graph; ``structure.T`` sums over each source's out-edges instead.
        rows: ``[E, ...]``, floating, in the caller's edge order.
        backend: ``"auto"``, ``"triton"``, ``"numba"``, ``"gather"`` or ``"reference"``.

    Returns:
        ``[T, ...]`` in the dtype of ``rows`` (half types are summed in float32); 0 for a target without edges.

    Raises:
        ArgumentError: If the number of rows is not the number of edges.
        BackendError: If a backend that was named cannot run here.
    """
    st.check_rows("rows", rows, structure.num_edges, "edge")
    name = pick(backend, structure, rows=rows)
    if name == "reference":
        return reference.segment_sum(structure, rows)
    return ops.segment_sum(*st.flat(structure), rows, name)


def spread(structure: Structure, rows: Tensor, *, backend: str = "auto") -> Tensor:
    """Copy each target's row onto its in-edges: ``out[e] = rows[t]`` for ``e = (s -> t)``.

    The adjoint of :func:`segment_sum`, with a deterministic gradient (plain indexing adds with atomics on CUDA).

    Args:
        structure: The graph; ``structure.T`` spreads the sources' rows.
        rows: ``[T, ...]``, floating.
        backend: ``"auto"``, ``"triton"``, ``"numba"``, ``"gather"`` or ``"reference"``.

    Returns:
        ``[E, ...]`` in the caller's edge order.

    Raises:
        ArgumentError: If the number of rows is not the number of targets.
        BackendError: If a backend that was named cannot run here.
    """
    st.check_rows("rows", rows, structure.num_targets, "target")
    name = pick(backend, structure, rows=rows)
    if name == "reference":
        return reference.spread(structure, rows)
    return ops.spread(*st.flat(structure), rows, name)
