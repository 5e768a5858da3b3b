"""Public function: validation and choice of backend."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import structure as st
from graphattn_kernels._sparse import pick
from graphattn_kernels.errors import ArgumentError
from graphattn_kernels.spmm import ops
from graphattn_kernels.spmm.impl import reference
from graphattn_kernels.structure import Structure

__all__ = ["spmm"]


def spmm(structure: Structure, weights: Tensor, values: Tensor, *, backend: str = "auto") -> Tensor:
    """Weighted sum of the sources' values at every target.

    .. math:: y_{thd} = \\sum_{e = (s \\to t)} w_{eh} v_{shd}

    Args:
        structure: The graph; ``structure.T`` carries values from targets to sources.
        weights: ``[E, H]``, or ``[E, H, D]`` for a weight on each channel, in the caller's edge order.
        values: ``[S, H, D]``.
        backend: ``"auto"``, ``"triton"``, ``"numba"``, ``"gather"`` or ``"reference"``.

    Returns:
        ``[T, H, D]``; 0 for a target without edges; half types are summed in float32.

    Raises:
        ArgumentError: If shapes, dtypes or devices do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    st.check_rows("values", values, structure.num_sources, "source", dim=3)
    st.check_rows("weights", weights, structure.num_edges, "edge")
    # The sizes one by one: torch.compile does not find a tuple of symbolic sizes in another (torch 2.13).
    fits = weights.dim() in (2, 3) and weights.shape[1] == values.shape[1]
    if not fits or (weights.dim() == 3 and weights.shape[2] != values.shape[2]) or weights.dtype != values.dtype:
        raise ArgumentError(
            f"weights must be [E, H] or [E, H, D] with the heads, channels and dtype of values "
            f"{list(values.shape)} {values.dtype}, got {list(weights.shape)} {weights.dtype}"
        )
    name = pick(backend, structure, weights=weights, values=values)
    if name == "reference":
        return reference.spmm(structure, weights, values)
    return ops.spmm(*st.flat(structure), weights, values, name)
