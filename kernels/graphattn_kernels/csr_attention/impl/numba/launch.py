"""From tensors to the compiled passes and back: conversions, and putting hubs together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn_kernels._lanes import LANES
from graphattn_kernels._numba import Array, Parts, empty, run, run_rows
from graphattn_kernels.csr_attention.impl.numba import passes
from graphattn_kernels.csr_attention.inputs import Inputs
from graphattn_kernels.structure import Structure, View

__all__ = ["backward", "forward"]

# Half types as 16-bit integers, by which the compiled code tells them apart.
_HALF = {torch.bfloat16: np.int16, torch.float16: np.uint16}
# Vectors of a head (the same for q and v) for which loops are written out: a fifth to a third faster, but each of these
# numbers is compiled for by itself, in some ten seconds; all others share one code.
_WRITTEN_OUT = (1, 2, 4, 8)
_MASK = 0xFFFFFFFF


class _Arguments:
    """A call as the passes take it: flat arrays, shapes, options."""

    def __init__(self, inputs: Inputs) -> None:
        q, v, bias, gate = inputs.q, inputs.v, inputs.edge_bias, inputs.edge_gate
        self.dtype = inputs.dtype
        # Half types are read as they are where they fill whole vectors, else as a copy in float32.
        whole = all(width > 0 and width % LANES == 0 for width in (q.shape[2], v.shape[2]))
        self.half = q.dtype if q.dtype in _HALF and whole else None
        self.number = number = np.float64 if self.dtype == torch.float64 else np.float32
        self.q, self.k, self.v = self.rows(q), self.rows(inputs.k), self.rows(v)
        self.edge_rows = self.rows(inputs.edge_rows)
        vectors = [-(-x.shape[2] // LANES) for x in (q, v)]
        known = (0,) * vectors[0] if vectors[0] == vectors[1] and vectors[0] in _WRITTEN_OUT else ()
        self.shapes = (*q.shape[1:], known), (*v.shape[1:], known)
        if bias is not None and bias.stride(1) == 0:  # one for all heads, expanded: read the one
            bias = bias[:, :1]
        self.terms = (
            *(self.array(bias), 0 if bias is None else bias.shape[1], self.rows(gate), self.array(inputs.att)),
            *(number(inputs.scale), inputs.additive, number(inputs.negative_slope or 0.0)),
        )
        self.bound = number(np.inf if inputs.clamp is None else inputs.clamp)
        low, high = (0, 0) if inputs.dropout_seed is None else inputs.dropout_seed.tolist()
        threshold, grow = int(inputs.dropout_p * 2**32), number(1.0 / (1.0 - inputs.dropout_p))
        self.dropout = low & _MASK, high & _MASK, threshold, grow
        self.width = q.shape[1] * (q.shape[2] + v.shape[2])

    def array(self, x: Tensor | None) -> Array:
        """In the dtype of the arithmetic; empty for an absent one."""
        return np.empty(0, self.number) if x is None else x.detach().to(self.dtype).contiguous().numpy().reshape(-1)

    def rows(self, x: Tensor | None) -> Array:
        """The same for rows of channels, which may stay in their half type."""
        if self.half is None:
            return self.array(x)
        integer = _HALF[self.half]
        if x is None:
            return np.empty(0, integer)
        return x.detach().contiguous().view(torch.int16).numpy().view(integer).reshape(-1)

    def view(self, view: View) -> View:
        """The same edges, with numbers where they have rows of their own, which are found by number."""
        if self.edge_rows.size == 0 or view.edge_id is not None:
            return view
        return view._replace(edge_id=torch.arange(view.num_edges, dtype=view.index.dtype, device=view.index.device))

    def empty(self, *shape: int) -> Tensor:
        return empty(shape, self.dtype)

    def empty_rows(self, shape: tuple[int, ...] | None) -> Tensor:
        """Room for rows that are written once, in the dtype in which :meth:`rows` reads them."""
        return empty(shape or (0,), self.half or self.dtype)


def forward(structure: Structure, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """See the API. Returns output, log-sum-exp and product (empty where it is not wanted)."""
    call = _Arguments(inputs)
    q, v = inputs.q, inputs.v
    out, lse = call.empty(q.shape[0], *v.shape[1:]), call.empty(*q.shape[:2])
    product = call.empty_rows((structure.num_edges, *q.shape[1:]) if inputs.need_product else None)
    given = *call.shapes, call.q, call.k, call.v, call.edge_rows, call.terms, call.bound, call.dropout
    results = out.numpy(), lse.numpy()
    hubs = run(passes.forward, call.view(structure.by_target), call.width, (*given, call.rows(product)), results)
    if hubs is not None:
        _merge(hubs, *results)
    return out.to(v.dtype), lse, product.to(q.dtype)


def _merge(parts: Parts, out: Array, lse: Array) -> None:
    """Weigh the parts of hubs by their share of the mass."""
    part_out, part_lse = parts.results
    top = np.maximum.reduceat(part_lse, parts.starts, axis=0)
    top = np.where(top == -np.inf, 0, top).astype(lse.dtype)
    mass = np.exp(part_lse - top[parts.hub_of_part])
    total = np.add.reduceat(mass, parts.starts, axis=0)
    share = mass / np.where(total == 0, 1, total)[parts.hub_of_part]
    out[parts.hubs] = np.add.reduceat(share[..., None] * part_out, parts.starts, axis=0)
    with np.errstate(divide="ignore"):
        lse[parts.hubs] = top + np.log(total)


def backward(
    structure: Structure,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    grad_product: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, edge_bias, edge_gate, edge_rows and att (empty for an absent one).

    The weights are computed again from the log-sum-exp by the pass over sources, which reads q and the gradient of the
    output for each edge. It carries the gradient of the score, one number for each edge and head, to the pass over
    targets, so that this one reads k alone. The other way round each pass would read two rows.
    """
    call = _Arguments(inputs)
    q, heads = inputs.q, inputs.heads
    slopes, slopes_product = call.rows(grad_out), call.rows(grad_product)
    stats = call.empty(q.shape[0] * 2 * heads).numpy()
    saved = call.rows(out), slopes, call.array(lse), call.array(grad_lse), stats
    run_rows(passes.prepare, q.shape[0], call.width, call.shapes[1], *saved)
    carried = call.empty(structure.num_edges * heads)  # which is the gradient of the bias, too
    rows = inputs.edge_rows
    grad_gate = call.empty_rows(None if inputs.edge_gate is None else inputs.edge_gate.shape)
    grad_rows = call.empty_rows(None if rows is None else rows.shape)
    grad_q, grad_k, grad_v = (call.empty(*x.shape) for x in (q, inputs.k, inputs.v))
    # The sum over all edges is made of one sum for each target, so that it does not depend on the threads.
    grad_att = call.empty(q.shape[0], *((0, 0) if inputs.att is None else inputs.att.shape))

    edges = slopes_product, carried.numpy()
    options = call.terms, call.bound, call.dropout
    given: tuple[Any, ...] = (*call.shapes, call.q, call.k, call.v, call.edge_rows, *options, stats, slopes, *edges)
    view, results = call.view(structure.by_source), (grad_k.numpy(), grad_v.numpy())
    _run(passes.backward_sources, view, call.width, (*given, call.rows(grad_rows)), results)
    given = call.shapes[0], call.q, call.k, call.edge_rows, call.terms, *edges, call.rows(grad_gate)
    view, results = call.view(structure.by_target), (grad_q.numpy(), grad_att.numpy())
    _run(passes.backward_targets, view, call.width, given, results)

    gradients = [x.to(q.dtype) for x in (grad_q, grad_k, grad_v)]
    bias, gate, att = inputs.edge_bias, inputs.edge_gate, inputs.att
    gradients.append(q.new_empty(0) if bias is None else carried.view(-1, heads).to(q.dtype))  # no two are one tensor
    gradients.append(q.new_empty(0) if gate is None else grad_gate.to(q.dtype))
    gradients.append(q.new_empty(0) if rows is None else grad_rows.to(q.dtype))
    total = None if att is None else torch.from_numpy(grad_att.numpy().sum(0, np.float64))
    gradients.append(q.new_empty(0) if total is None else total.to(q.dtype))
    return tuple(gradients)


def _run(kernel: Any, view: View, width: int, given: tuple[Any, ...], results: tuple[Array, ...]) -> None:
    """A pass whose results are sums over edges."""
    hubs = run(kernel, view, width, given, results)
    if hubs is not None:
        hubs.add(results)
