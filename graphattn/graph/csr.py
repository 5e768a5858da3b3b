"""The two sorted forms of an edge list, and how to get them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Csc",
    "Csr",
    "alone",
    "batch_ptr",
    "batch_vector",
    "index_dtype",
    "lasting",
    "rows",
    "sort_by_source",
    "sort_by_target",
]


class Csr(NamedTuple):
    """Edges sorted by target, then source (ties keep the caller's order)."""

    rowptr: Tensor
    """``[T + 1]``: the in-edges of target ``t`` stand at ``rowptr[t]:rowptr[t + 1]``."""
    col: Tensor
    """``[E]``: the source of each edge."""
    edge_id: Tensor | None
    """``[E]``: where the caller's edge tensors hold this edge; ``None`` means in this very order."""


class Csc(NamedTuple):
    """The same edges sorted by source, then target."""

    colptr: Tensor
    """``[S + 1]``: the out-edges of source ``s`` stand at ``colptr[s]:colptr[s + 1]``."""
    row: Tensor
    """``[E]``: the target of each edge."""
    transpose_id: Tensor
    """``[E]``: position of this edge in :class:`Csr`."""


def lasting() -> AbstractContextManager[Any]:
    """Inside, tensors are made that training can use, whatever the mode: a graph keeps what it builds."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(False)


def index_dtype(*bounds: int) -> torch.dtype:
    """int32 halves the index traffic; int64 only where a count does not fit."""
    if torch.compiler.is_compiling():
        # A comparison of symbolic sizes would guard on them and recompile at the threshold.
        return torch.int64
    return torch.int32 if max(bounds) < 2**31 - 1 else torch.int64


def sort_by_target(source: Tensor, target: Tensor, num_targets: int, num_sources: int) -> Csr:
    """Edges in any order -> :class:`Csr`."""
    key, order = torch.sort(target * max(num_sources, 1) + source, stable=True)
    dtype = index_dtype(num_targets, num_sources, source.shape[0])
    rowptr = torch.searchsorted(key, torch.arange(num_targets + 1, device=key.device) * max(num_sources, 1))
    # The source is what the key says: reading it there is sequential, gathering it is not.
    return Csr(rowptr.to(dtype), (key % max(num_sources, 1)).to(dtype), order.to(dtype))


def rows(csr: Csr) -> Tensor:
    """The target of each edge."""
    degree = csr.rowptr.diff()
    targets = torch.arange(degree.shape[0], device=degree.device, dtype=csr.col.dtype)
    return torch.repeat_interleave(targets, degree, output_size=csr.col.shape[0])


def sort_by_source(csr: Csr, row: Tensor, num_sources: int) -> Csc:
    """The transpose of a :class:`Csr`, given the target ``row`` of each edge."""
    # CSR is sorted by target, so a stable sort by source alone sorts by (source, target).
    col, order = torch.sort(csr.col, stable=True)
    colptr = torch.searchsorted(col, torch.arange(num_sources + 1, device=col.device, dtype=col.dtype))
    return Csc(colptr.to(col.dtype), row[order], order.to(col.dtype))


def batch_vector(ptr: Tensor | None, size: int, device: torch.device) -> Tensor:
    """The member that each token belongs to."""
    if ptr is None:
        return torch.zeros(size, dtype=torch.int64, device=device)
    members = torch.arange(ptr.shape[0] - 1, device=ptr.device)
    return torch.repeat_interleave(members, ptr.diff(), output_size=size)


def batch_ptr(batch: Tensor, members: int | None = None) -> Tensor:
    """int64 ``[M + 1]``: the first token of each member, from the member of each token.

    Args:
        batch: int64 ``[N]``, ascending.
        members: M; ``None``: as the last token says, for which the device is waited for.
    """
    if members is None:
        members = int(batch[-1]) + 1 if batch.numel() else 0
    return torch.searchsorted(batch.contiguous(), torch.arange(members + 1, device=batch.device))


def alone(x: Any) -> Any:
    """Tensors without what else their memory holds: pickle writes all of it, for each of them."""
    if isinstance(x, Csr | Csc):
        return type(x)(*map(alone, x))
    return x.clone() if isinstance(x, Tensor) and x.untyped_storage().nbytes() > x.nbytes else x
