"""Public function: validation that no backend may differ on, and choice of backend."""

from __future__ import annotations

from torch import Tensor

from graphattn_kernels import structure as st
from graphattn_kernels._library import autocast
from graphattn_kernels._random import check_dropout
from graphattn_kernels.backends import choose
from graphattn_kernels.csr_attention import ops
from graphattn_kernels.csr_attention.impl import reference
from graphattn_kernels.csr_attention.inputs import Inputs
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError
from graphattn_kernels.segment_sum import spread
from graphattn_kernels.structure import Structure, edges_as_sources

__all__ = ["TRITON_WIDTH", "attend_checked", "check_channels", "csr_attention", "default_scale", "select"]

TRITON_WIDTH = 256  # a row of one head stays in the registers of one warp


def csr_attention(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    edge_bias: Tensor | None = None,
    edge_gate: Tensor | None = None,
    edge_rows: Tensor | None = None,
    att: Tensor | None = None,
    negative_slope: float | None = None,
    scale: float | None = None,
    clamp: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    need_product: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """Attention of every target over its in-edges ``e = (s -> t)``.

    .. math::
        a_{eh} = \\operatorname{clamp}(\\sigma z_{eh} + b_{eh}), \\qquad
        y_{th} = \\sum_e \\operatorname{softmax}_{e \\to t}(a_{eh})\\, v_{sh}

    with the dot score :math:`z_{eh} = \\sum_d q_{thd} k_{shd} g_{ehd}`, or the additive score
    :math:`z_{eh} = \\sum_d w_{hd} \\operatorname{LeakyReLU}(q_{thd} + k_{shd} + g_{ehd})` of GATv2 (Brody, Alon &
    Yahav, ICLR 2022, eq. 7), which with one channel and w = 1 is that of GAT (Velickovic et al., ICLR 2018, eq. 3).
    With ``edge_rows`` r, the key of an edge is :math:`k_s + r_e` and its value :math:`v_s + r_e` (Shi et al., IJCAI
    2021, eq. 3 and 4).

    Args:
        structure: The graph.
        q: ``[T, H, D]`` queries.
        k: ``[S, H, D]`` keys.
        v: ``[S, H, D_v]`` values.
        edge_bias: ``[E, H]`` (or ``[E, 1]``) added to the score, in the caller's edge order.
        edge_gate: ``[E, H, D]`` multiplied with q * k in each channel (added to q + k in the additive score), in the
            caller's edge order.
        edge_rows: ``[E, H, D]`` added to the keys and the values that edges carry, in the caller's edge order: dot
            score only, where D_v is D, without gate and product. ``"gather"`` and ``"reference"`` add them to copies.
        att: ``[H, D]``, the vector w of the additive score; default: ones.
        negative_slope: Slope of the LeakyReLU; makes the score additive.
        scale: Factor sigma; default ``D ** -0.5`` for the dot score, else 1.
        clamp: Bound on the magnitude of the score, applied last.
        dropout_p: Probability of dropping a weight after the softmax.
        dropout_seed: int64 ``[2]``, needed where ``dropout_p > 0``; the same seed drops the same weights.
        need_product: Return the product of each edge, too (dot score only).
        backend: ``"auto"``, ``"triton"``, ``"numba"``, ``"gather"`` or ``"reference"``.

    Under autocast the tensors are cast to its dtype.

    Returns:
        ``[T, H, D_v]`` in the dtype of ``v`` (a target without edges gets exactly 0); the log-sum-exp of its
        scores ``[T, H]`` in float32 (float64 for float64), -inf for a target without edges; and, only where it was
        asked for, a third tensor: the product sigma q k g ``[E, H, D]`` before bias and clamp, in the caller's edge
        order. All are differentiable.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If dtypes do not fit.
        BackendError: If a backend that was named cannot run here.
    """
    tensors = autocast(q, k, v, edge_bias, edge_gate, edge_rows, att)
    q, k, v, edge_bias, edge_gate, edge_rows, att = tensors  # type: ignore[assignment]
    _check(structure, q, k, v, edge_bias, edge_gate, edge_rows, att)
    if clamp is not None and not clamp > 0:
        raise ArgumentError(f"clamp must be positive, got {clamp}")
    if negative_slope is None and att is not None:
        raise ArgumentError("att belongs to the additive score, which negative_slope chooses; got att alone")
    if negative_slope is not None and need_product:
        raise ArgumentError("need_product needs the dot score, got negative_slope, which makes it additive")
    if edge_rows is not None and not (negative_slope is None and edge_gate is None and not need_product):
        raise ArgumentError("edge_rows need the dot score, without edge_gate and need_product")
    check_dropout(dropout_p, dropout_seed, q.device)
    if edge_bias is not None and edge_bias.shape[1] != q.shape[1]:
        edge_bias = edge_bias.expand(-1, q.shape[1])
    inputs = Inputs(
        *(q, k, v, edge_bias, edge_gate, edge_rows, att, dropout_seed if dropout_p else None),
        *(default_scale(q, negative_slope) if scale is None else float(scale), clamp, negative_slope),
        *(float(dropout_p), need_product),
    )
    out, lse, product = attend_checked(structure, inputs, select(backend, q, v))
    return (out, lse) if product is None or not need_product else (out, lse, product)


def default_scale(q: Tensor, negative_slope: float | None) -> float:
    """The factor on the score where the caller gives none."""
    return q.shape[-1] ** -0.5 if negative_slope is None else 1.0


def attend_checked(structure: Structure, inputs: Inputs, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operation for callers that have checked all that :func:`csr_attention` checks (channels by
    :func:`check_channels`), with a backend that :func:`select` gave: on a small graph, looking twice takes longer than
    the kernel."""
    if inputs.edge_rows is not None and name in ("gather", "reference"):
        structure, inputs = _with_a_source_for_each_edge(structure, inputs, name)
    if name == "reference":
        return reference.csr_attention(structure, inputs)
    return ops.csr_attention(*st.flat(structure), *inputs, name)


def _with_a_source_for_each_edge(structure: Structure, inputs: Inputs, name: str) -> tuple[Structure, Inputs]:
    """The same without edge rows: every edge has a key and a value of its own."""
    rows = inputs.edge_rows
    assert rows is not None
    k, v = (spread(structure.T, x, backend=name) + rows for x in (inputs.k, inputs.v))
    return edges_as_sources(structure), inputs._replace(k=k, v=v, edge_rows=None)


def select(backend: str, q: Tensor, v: Tensor) -> str:
    """The backend that :func:`csr_attention` takes for these tensors.

    Raises:
        ArgumentError: If there is no backend of this name.
        BackendError: If a backend that was named cannot run here; the text says why.
    """
    name = choose(backend, q.device)
    if name == "triton" and max(q.shape[-1], v.shape[-1]) > TRITON_WIDTH:
        if backend != "auto":
            raise BackendError(
                f"backend 'triton' takes at most {TRITON_WIDTH} channels a head, got q {list(q.shape)} and "
                f"v {list(v.shape)}; use 'gather' or 'auto'"
            )
        name = "gather"
    return name


def check_channels(q: Tensor, edge_gate: Tensor | None, att: Tensor | None) -> None:
    """Raise unless what has the channels of q has all of them: for callers of :func:`attend_checked`, too."""
    if edge_gate is not None and edge_gate.shape[1:] != q.shape[1:]:
        raise ArgumentError(f"edge_gate must be [E, *{list(q.shape[1:])}], got {list(edge_gate.shape)}")
    if att is not None:
        _check_alike("att", att, q)
        if att.shape != q.shape[1:]:
            raise ArgumentError(f"att must be [H, D], {list(q.shape[1:])}, got {list(att.shape)}")


def _check_alike(name: str, x: Tensor, q: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype != q.dtype or x.device != q.device:
        raise ArgumentTypeError(
            f"{name} must have the dtype and device of q, {q.dtype} on {q.device}, got {x.dtype} on {x.device}"
        )


def _check(
    structure: Structure,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_bias: Tensor | None,
    edge_gate: Tensor | None,
    edge_rows: Tensor | None,
    att: Tensor | None,
) -> None:
    st.check_rows("q", q, structure.num_targets, "target", dim=3)
    st.check_rows("k", k, structure.num_sources, "source", dim=3)
    st.check_rows("v", v, structure.num_sources, "source", dim=3)
    if k.shape[1:] != q.shape[1:]:
        raise ArgumentError(f"k must have the heads and channels of q, {list(q.shape[1:])}, got {list(k.shape[1:])}")
    if q.shape[2] < 1:
        raise ArgumentError(f"q must have at least one channel, got {list(q.shape)}")
    if v.shape[1] != q.shape[1]:
        raise ArgumentError(f"v must have the heads of q, {q.shape[1]}, got {v.shape[1]}")
    for name, tensor in {
        "k": k,
        "v": v,
        "edge_bias": edge_bias,
        "edge_gate": edge_gate,
        "edge_rows": edge_rows,
    }.items():
        if tensor is not None:
            _check_alike(name, tensor, q)
    if structure.by_target.index.device != q.device:
        raise ArgumentError(f"the graph must be on the device of q, {q.device}, got {structure.by_target.index.device}")
    if edge_bias is not None:
        st.check_rows("edge_bias", edge_bias, structure.num_edges, "edge", dim=2)
        # Not "in": torch.compile does not find a symbolic size in a tuple (torch 2.13).
        if edge_bias.shape[1] != q.shape[1] and edge_bias.shape[1] != 1:
            raise ArgumentError(f"edge_bias must be [E, {q.shape[1]}] or [E, 1], got {list(edge_bias.shape)}")
    if edge_gate is not None:
        st.check_rows("edge_gate", edge_gate, structure.num_edges, "edge", dim=3)
    if edge_rows is not None:
        st.check_rows("edge_rows", edge_rows, structure.num_edges, "edge", dim=3)
        if edge_rows.shape[1:] != q.shape[1:] or v.shape[2] != q.shape[2]:
            raise ArgumentError(
                f"edge_rows must be [E, H, D] with D the channels of q and v, got {list(edge_rows.shape)} with "
                f"q {list(q.shape)} and v {list(v.shape)}"
            )
    check_channels(q, edge_gate, att)
