"""Public function: validation and choice of backend."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import structure as st
from graphattn_kernels._sparse import pick
from graphattn_kernels.segment_softmax import ops
from graphattn_kernels.segment_softmax.impl import reference
from graphattn_kernels.structure import Structure

__all__ = ["segment_softmax"]


def segment_softmax(structure: Structure, scores: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Normalise scores over the in-edges of each target.

    .. math:: w_{eh} = \\exp(s_{eh} - l_{th}), \\qquad l_{th} = \\log \\sum_{e' = (s' \\to t)} \\exp(s_{e'h})

    Args:
        structure: The graph.
        scores: ``[E, H]`` in the caller's edge order.
        backend: ``"auto"``, ``"triton"``, ``"numba"``, ``"gather"`` or ``"reference"``.

    Returns:
        Weights ``[E, H]`` in the dtype of ``scores``, and the log-sum-exp ``[T, H]`` in float32 (float64 for float64),
        -inf for a target without edges.

    Raises:
        ArgumentError: If the number of scores is not the number of edges.
        BackendError: If a backend that was named cannot run here.
    """
    st.check_rows("scores", scores, structure.num_edges, "edge", dim=2)
    name = pick(backend, structure, scores=scores)
    if name == "reference":
        return reference.segment_softmax(structure, scores)
    return ops.segment_softmax(*st.flat(structure), scores, name)
