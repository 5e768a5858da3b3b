"""Plain PyTorch in blocks of rows, on any device: memory is a block times the sources, in backward too."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from graphattn_kernels._members import Members, without_padding
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["backward", "forward"]

# Numbers in one [batch, heads, rows, sources] buffer: in the cache of a CPU; on a GPU fewer launches win.
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}


def forward(
    q: Tensor, k: Tensor, v: Tensor, members: Members, scale: float, causal: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """See the API. Returns output and norm."""
    out = v.new_empty((*q.shape[:3], v.shape[3]))
    norm = q.new_empty((members.count(q), q.shape[2]), dtype=accumulate_dtype(q.dtype))
    for entries, targets, sources, rows in _pieces(q, members):
        piece = _Piece(q[:, targets], k[:, sources], v[:, sources], entries, scale, causal)
        square = norm.new_zeros(norm[rows].shape)
        result = norm.new_empty((*norm[rows].shape, targets.stop - targets.start, v.shape[3]))
        for block, weights in piece.blocks():
            square += weights.square().sum((-2, -1))
            torch.matmul(weights, piece.v[:, :, : weights.shape[-1]], out=result[:, :, block])
        norm[rows] = square.sqrt()
        out[:, targets] = (result / (norm[rows] + eps)[:, :, None, None]).transpose(1, 2)
    return out, norm


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    members: Members,
    scale: float,
    causal: bool,
    eps: float,
    out: Tensor,
    norm: Tensor,
    grad_out: Tensor,
    grad_norm: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for entries, targets, sources, rows in _pieces(q, members):
        piece = _Piece(q[:, targets], k[:, sources], v[:, sources], entries, scale, causal)
        slope = without_padding(grad_out[:, targets], entries.target_lengths).to(norm.dtype).transpose(1, 2)
        result = without_padding(out[:, targets], entries.target_lengths).to(norm.dtype).transpose(1, 2)
        shrunk = norm[rows] + eps
        along = (slope * result).sum((-2, -1))
        if grad_norm is not None:
            along = along - grad_norm[rows] * shrunk
        along = (along / norm[rows].masked_fill(norm[rows] == 0.0, 1.0))[:, :, None, None]
        by_q, by_k, by_v = (torch.zeros_like(x) for x in (piece.q, piece.k, piece.v))
        for block, weights in piece.blocks():
            n = weights.shape[-1]
            g = slope[:, :, block]
            by_v[:, :, :n] += weights.mT @ g
            to_score = (g @ piece.v[:, :, :n].mT - along * weights).masked_fill_(weights == 0.0, 0.0)
            by_q[:, :, block] = to_score @ piece.k[:, :, :n]
            by_k[:, :, :n] += to_score.mT @ piece.q[:, :, block]
        for grad, part, by, factor in (
            (grad_q, targets, by_q, scale),
            (grad_k, sources, by_k, scale),
            (grad_v, sources, by_v, 1.0),
        ):
            grad[:, part] = (by * (factor / shrunk)[:, :, None, None]).transpose(1, 2)
    return grad_q, grad_k, grad_v


def _pieces(q: Tensor, members: Members) -> Iterator[tuple[Members, slice, slice, slice]]:
    """All batch entries at once, or the members of a ragged batch in turn: their padding, targets, sources, norms."""
    if members.target_ptr is None:
        yield members, slice(0, q.shape[1]), slice(None), slice(None)
        return
    for g, (targets, sources) in enumerate(members.slices()):
        yield Members(None, None, None, None), targets, sources, slice(g, g + 1)


class _Piece:
    """Heads before tokens, in the dtype of the arithmetic, padding zero."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, entries: Members, scale: float, causal: bool) -> None:
        dtype = accumulate_dtype(q.dtype)
        lengths = entries.target_lengths, entries.source_lengths, entries.source_lengths
        self.q, self.k, self.v = (
            without_padding(x, length).to(dtype).transpose(1, 2).contiguous()
            for x, length in zip((q, k, v), lengths, strict=True)
        )
        self.scale, self.causal = scale, causal

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of targets with their weights ``[B, H, rows, sources]``, of a causal graph up to the last one read."""
        batch, heads, targets, _ = self.q.shape
        sources = self.k.shape[2]
        budget = _BLOCK_ELEMENTS.get(self.q.device.type, 1 << 18)
        step = max(1, budget // max(1, batch * heads * sources))
        for begin in range(0, targets, step):
            end = min(begin + step, targets)
            n = min(end, sources) if self.causal else sources
            weights = (self.q[:, :, begin:end] @ self.k[:, :, :n].mT).mul_(self.scale).relu_()
            yield slice(begin, end), weights.tril_(begin) if self.causal else weights
