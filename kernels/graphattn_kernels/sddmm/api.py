"""Public function: validation and choice of backend."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import structure as st
from graphattn_kernels._sparse import pick
from graphattn_kernels.errors import ArgumentError
from graphattn_kernels.sddmm import ops
from graphattn_kernels.sddmm.impl import reference
from graphattn_kernels.structure import Structure

__all__ = ["sddmm"]


def sddmm(structure: Structure, a: Tensor, b: Tensor, *, channels: bool = False, backend: str = "auto") -> Tensor:
    """Multiply the two ends of every edge ``e = (s -> t)``.

    .. math:: y_{eh} = \\sum_d a_{thd} b_{shd} \\qquad\\text{or, with channels,}\\qquad y_{ehd} = a_{thd} b_{shd}

    Args:
        structure: The graph.
        a: ``[T, H, D]``, read at the target.
        b: ``[S, H, D]``, read at the source.
        channels: Keep the channels apart.
        backend: ``"auto"``, ``"triton"``, ``"numba"``, ``"gather"`` or ``"reference"``.

    Returns:
        ``[E, H]`` or ``[E, H, D]`` in the caller's edge order; half types are summed in float32.

    Raises:
        ArgumentError: If shapes, dtypes or devices do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    st.check_rows("a", a, structure.num_targets, "target", dim=3)
    st.check_rows("b", b, structure.num_sources, "source", dim=3)
    if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
        raise ArgumentError(
            f"a and b must share heads, channels and dtype, got {list(a.shape[1:])} {a.dtype} "
            f"and {list(b.shape[1:])} {b.dtype}"
        )
    name = pick(backend, structure, a=a, b=b)
    if name == "reference":
        return reference.sddmm(structure, a, b, channels)
    return ops.sddmm(*st.flat(structure), a, b, channels, name)
