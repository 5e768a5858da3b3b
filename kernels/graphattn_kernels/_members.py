"""Members of a batch of complete graphs: padded to one size, or one after the other.

``relu_attention`` and ``rank_one_attention`` take the graph as this: every target of a member may read all sources of
the same member, and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._calls import check_alike, lacks, triton_or
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

__all__ = ["MEMBERS_SCHEMA", "WHOLE", "Members", "batched", "checked", "select", "without_padding"]

MEMBERS_SCHEMA = "Tensor? target_lengths, Tensor? source_lengths, Tensor? target_ptr, Tensor? source_ptr"


class Members(NamedTuple):
    """Where each member's tokens are; all ``None``: every batch entry is a member, without padding."""

    target_lengths: Tensor | None
    """``[B]``: targets of each batch entry; the rest is padding."""
    source_lengths: Tensor | None
    """``[B]``: sources of each batch entry."""
    target_ptr: Tensor | None
    """``[G + 1]``: member g has the targets ``target_ptr[g]`` to ``target_ptr[g + 1] - 1``."""
    source_ptr: Tensor | None
    """``[G + 1]``: the same for sources."""

    def count(self, q: Tensor) -> int:
        """Number of members of ``q [B, T, H, D]``."""
        return q.shape[0] if self.target_ptr is None else self.target_ptr.shape[0] - 1

    def slices(self) -> Iterator[tuple[slice, slice]]:
        """Targets and sources of each member of a ragged batch; waits for the device."""
        assert self.target_ptr is not None and self.source_ptr is not None
        targets, sources = pairwise(self.target_ptr.tolist()), pairwise(self.source_ptr.tolist())
        return ((slice(*t), slice(*s)) for t, s in zip(targets, sources, strict=True))


_PLAIN = {Tensor, torch.nn.Parameter, type(None)}
_MOST = 1024  # kinds of calls that are remembered
_chosen: dict[tuple[Any, ...], str] = {}

WHOLE = Members(None, None, None, None)
"""Every batch entry is a member, without padding."""


def batched(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With a batch axis of one where there is none."""
    return (q, k, v) if q.dim() == 4 else (q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0))


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """``x [B, N, H, D]`` with 0 in padding: a row of zeros has no weight and gives none."""
    if lengths is None:
        return x
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(padding[:, :, None, None], 0.0)


def select(backend: str, q: Tensor, v: Tensor) -> str:
    """:func:`checked` without a look at the rest."""
    if backend in ("reference", "gather"):
        return backend
    return triton_or("gather", backend, q.device, lambda: lacks(q, v))


def checked(backend: str, q: Any, k: Any, v: Any, members: Members) -> str:
    """The backend for these tensors: ``"triton"``, ``"gather"`` or ``"reference"``; values on the device are not looked
    at. Of equal calls only the first is checked, which takes the host as long as launches do.

    Raises:
        ArgumentError: If tensors and members do not fit, or there is no backend of this name.
        ArgumentTypeError: If types do not fit.
        BackendError: If a backend that was named cannot run here; the text says why.
    """
    if torch.compiler.is_compiling() or not _PLAIN.issuperset((type(q), type(k), type(v), *map(type, members))):
        _check(q, k, v, members)
        return select(backend, q, v)
    kind = (backend, *[None if x is None else (x.shape, x.dtype, x.device) for x in (q, k, v, *members)])
    name = _chosen.get(kind)
    if name is None:
        _check(q, k, v, members)
        name = select(backend, q, v)
        if len(_chosen) >= _MOST:
            _chosen.clear()
        _chosen[kind] = name
    return name


def _check(q: Any, k: Any, v: Any, members: Members) -> None:
    check_alike(q, k, v)
    if q.dim() not in (3, 4):
        raise ArgumentError(f"q must be [B, T, H, D] or [T, H, D], got shape {list(q.shape)}")
    for name, x in {"k": k, "v": v}.items():
        if x.dim() != q.dim() or x.shape[:-3] != q.shape[:-3] or x.shape[-2] != q.shape[-2]:
            raise ArgumentError(f"{name} must have the batch and heads of q, {list(q.shape)}, got {list(x.shape)}")
    if k.shape[-1] != q.shape[-1]:
        raise ArgumentError(f"k must have the channels of q, {q.shape[-1]}, got {k.shape[-1]}")
    if v.shape[-3] != k.shape[-3]:
        raise ArgumentError(f"v must have one row for each source of k, {k.shape[-3]}, got {v.shape[-3]}")
    _check_members(q, members)


def _check_members(q: Tensor, members: Members) -> None:
    ragged = members.target_ptr is not None or members.source_ptr is not None
    if ragged and (members.target_lengths is not None or members.source_lengths is not None):
        raise ArgumentError("give lengths (a padded batch) or ptr (members one after the other), not both")
    if (members.target_ptr is None) != (members.source_ptr is None):
        raise ArgumentError("target_ptr and source_ptr come together, got one of them")
    if ragged and q.dim() != 3:
        raise ArgumentError(f"q must be [T, H, D] where members are given by ptr, got shape {list(q.shape)}")
    sizes = set()
    for name, x in members._asdict().items():
        if x is None:
            continue
        if not isinstance(x, Tensor) or x.dtype not in (torch.int32, torch.int64) or x.dim() != 1:
            got = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentTypeError(f"{name} must be an int32 or int64 tensor of one dimension, got {got}")
        if x.device != q.device:
            raise ArgumentTypeError(f"{name} must be on the device of q, {q.device}, got {x.device}")
        if not ragged and (q.dim() != 4 or x.shape[0] != q.shape[0]):
            raise ArgumentError(f"{name} must have one length for each batch entry of q, {list(q.shape)}, got {len(x)}")
        if ragged and x.shape[0] < 1:
            raise ArgumentError(f"{name} must have one number more than there are members, got none")
        sizes.add(x.shape[0])
    if len(sizes) > 1:
        raise ArgumentError(f"target_ptr and source_ptr must have the same length, got {sorted(sizes)}")
