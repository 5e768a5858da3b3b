"""Pooling: every member of a batch reads its tokens; and the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph.csr import batch_ptr
from graphattn_kernels import Structure, View, segment_sum, spread
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["POOLS", "pool", "unpool"]

POOLS = ("mean", "sum", "max")


def pool(x: Tensor, batch: Tensor | None, num_graphs: int | None = None, how: str = "mean") -> Tensor:
    """One row for each graph of a batch; deterministic on every device.

    Args:
        x: ``[N, C]`` token rows.
        batch: int64 ``[N]``, the graph of each token, ascending; ``None``: all tokens are one graph.
        num_graphs: Number of graphs; default: the largest entry of ``batch`` plus one (a synchronisation on CUDA).
        how: ``"mean"``, ``"sum"`` or ``"max"``.

    Returns:
        ``[num_graphs, C]``; 0 for a graph without tokens.

    Raises:
        ArgumentError: If ``how`` is unknown, or ``batch`` is not one ascending entry for each row.
    """
    if how not in POOLS:
        raise ArgumentError(f"how must be one of {POOLS}, got {how!r}")
    if batch is None:
        batch, num_graphs = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device), 1
    check_batch(batch, x.shape[0], num_graphs)
    if num_graphs is None:
        num_graphs = int(batch[-1]) + 1 if batch.numel() else 0
    members = _members(batch, num_graphs)
    ptr = members.by_target.ptr
    if how == "max":
        top = torch.segment_reduce(x, "max", offsets=ptr, axis=0, unsafe=True)
        return top.masked_fill((ptr.diff() == 0).unsqueeze(1), 0.0)
    if how == "sum":
        return segment_sum(members, x)
    rows = x.to(accumulate_dtype(x.dtype))  # the sum, or the number of rows, may have no place in a half type
    return (segment_sum(members, rows) / ptr.diff().clamp(min=1).unsqueeze(1).to(rows.dtype)).to(x.dtype)


def unpool(rows: Tensor, batch: Tensor | None, num_tokens: int) -> Tensor:
    """Each token reads the row of its graph; the adjoint of :func:`pool` by sums, with a deterministic gradient.

    Args:
        rows: ``[num_graphs, C]``.
        batch: int64 ``[num_tokens]``, the graph of each token, ascending; ``None``: all tokens are one graph.
        num_tokens: Number of tokens.

    Returns:
        ``[num_tokens, C]``.

    Raises:
        ArgumentError: If ``batch`` is ``None`` and there is not one row, or it is not one ascending entry for each
            token.
    """
    if batch is None:
        if rows.shape[0] != 1:
            raise ArgumentError(f"rows must be [1, C] where batch is None, got {list(rows.shape)}")
        return rows.expand(num_tokens, -1)
    check_batch(batch, num_tokens, rows.shape[0])
    return spread(_members(batch, rows.shape[0]), rows)


def check_batch(batch: Tensor, num_tokens: int, num_graphs: int | None) -> None:
    """Raise unless ``batch`` is the graph of each token, ascending; its values are looked at on the CPU only, so that
    nothing waits for a device."""
    if batch.shape != (num_tokens,):
        raise ArgumentError(f"batch must be [N], the graph of each of {num_tokens} rows, got {list(batch.shape)}")
    if torch.compiler.is_compiling() or batch.device.type != "cpu" or not num_tokens:
        return
    if bool((batch.diff() < 0).any()):
        raise ArgumentError("batch must ascend (PyG's batches do); sort the rows by their graph first")
    first, last = int(batch[0]), int(batch[-1])
    if first < 0 or (num_graphs is not None and last >= num_graphs):
        raise ArgumentError(f"batch must lie in 0..num_graphs - 1, got {first}..{last} with num_graphs={num_graphs}")


def _members(batch: Tensor, num_graphs: int) -> Structure:
    """The membership graph: tokens are sources, graphs are targets, one edge for each token."""
    ptr = batch_ptr(batch, num_graphs)
    tokens = torch.arange(batch.shape[0] + 1, device=batch.device)
    return Structure(View(ptr, tokens[:-1], batch, None), View(tokens, batch, tokens[:-1], None))
