"""Causal but for a few rows: PyTorch's causal attention, and those rows once more under a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from graphattn.backends._dense import dense_attention
from graphattn.errors import BackendError
from graphattn.graph.graph_window import GraphWindow
from graphattn_kernels.block_attention.api import attend_checked, select

__all__ = ["SHORT", "few_rows", "windowed_attention"]

# Kernels that take a mask, in turn.
_MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Attention over all pairs, under a mask, costs about 3 times causal attention and takes a fifth of the launches.
SHORT, _MANY = 512, 4


def few_rows(graph: GraphWindow) -> bool:
    """Whether causal attention, and another for the rows that are not, beats attention under a mask of all pairs."""
    tokens, rows = graph.num_targets, graph.rows.shape[1]
    return graph.padding != "mixed" and (rows == 0 or (tokens > SHORT and rows * _MANY <= tokens))


def windowed_attention(
    graph: GraphWindow, q: Tensor, k: Tensor, v: Tensor, scale: float | None, order: list[SDPBackend]
) -> Tensor:
    """Attention over the graph of a prompt, or of a batch of prompts.

    Args:
        graph: Causal attention serves its text where :func:`few_rows` says so.
        q: ``[B, T, H, D]``, as k and v; a graph without leading dimensions serves each of B.
        k: See q.
        v: See q.
        scale: Factor on the scores.
        order: The kernels for causal attention, in turn.

    Returns:
        ``[B, T, H, D_v]``; 0 at padding.
    """
    by_rows = few_rows(graph)
    if by_rows:
        out = _causal(graph, q, k, v, scale, order)
    else:
        mask = graph.pair_mask.unsqueeze(1)
        out = _attention(_MASKED, q, k, v, scale=scale, attn_mask=mask)
    if graph.mask is not None:
        out = torch.where(graph.mask[..., None, None], out, 0.0)
    if graph.rows.shape[1] == 0 or not by_rows:
        return out
    batch, tokens = q.shape[:2]
    # Rows that a prompt does not have are numbered past the last token.
    first = torch.arange(batch, device=q.device).unsqueeze(1) * tokens
    row = torch.where(graph.rows == tokens, batch * tokens, first + graph.rows).flatten()
    some = q.flatten(0, 1).index_select(0, row.clamp(max=batch * tokens - 1)).unflatten(0, (batch, -1))
    if _takes_tiles(q, v):
        read, _ = attend_checked(graph.row_blocks, some, k, v, q.shape[-1] ** -0.5 if scale is None else scale, None)
    else:
        read = _attention(_MASKED, some, k, v, scale=scale, attn_mask=graph.row_mask.unsqueeze(1))
    return _Overwrite.apply(out.flatten(0, 1), read.flatten(0, 1), row).view(out.shape)


def _causal(
    graph: GraphWindow, q: Tensor, k: Tensor, v: Tensor, scale: float | None, order: list[SDPBackend]
) -> Tensor:
    """Causal attention in which nobody but padding reads padding: it stands behind the prompts, or is put there."""
    if graph.mask is None or graph.padding != "left":
        return _attention(order, q, k, v, scale=scale, is_causal=True)
    batch, tokens = q.shape[:2]
    token = torch.arange(tokens, device=q.device)
    shift = (~graph.mask).sum(1, keepdim=True)
    first = torch.arange(batch, device=q.device).unsqueeze(1) * tokens
    there, back = ((first + (token + step) % tokens).flatten() for step in (shift, -shift))
    q, k, v = (x.flatten(0, 1).index_select(0, there).view(x.shape) for x in (q, k, v))
    out = _attention(order, q, k, v, scale=scale, is_causal=True)
    return out.flatten(0, 1).index_select(0, back).view(out.shape)


def _takes_tiles(q: Tensor, v: Tensor) -> bool:
    """Whether tiles of the mask serve the node rows: the backward of PyTorch's kernels under a mask takes as long for a
    few rows as causal attention for all."""
    if q.device.type != "cuda" or torch.compiler.is_compiling():
        return False
    try:
        return select("triton", q, v) == "triton"
    except BackendError:
        return False


def _attention(order: list[SDPBackend], q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)
    return dense_attention(order, q, k, v, **options).transpose(1, 2)


class _Overwrite(torch.autograd.Function):
    """Some rows replaced, in one copy each way (``cat``, ``index_copy`` and a slice copy three times).

    The number of a row that is to be left out is that of the row past the end.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, number: Tensor) -> Tensor:
        ctx.save_for_backward(number)
        out = x.new_empty(x.shape[0] + 1, *x.shape[1:])
        out[:-1] = x
        return out.index_copy_(0, number, rows)[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,), (number,) = grads, ctx.saved_tensors
        out = grad.new_empty(grad.shape[0] + 1, *grad.shape[1:])
        out[:-1], out[-1] = grad, 0.0
        rows = out.index_select(0, number)
        return out.index_fill_(0, number, 0.0)[:-1], rows, None
