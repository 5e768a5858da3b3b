"""Validation of graphs, once, where they are made.

Values are not looked at where the host must not wait for the device (:func:`waits_for_nothing`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.csr import batch_vector

__all__ = [
    "check_csr",
    "check_edge_index",
    "check_edge_index_form",
    "check_members",
    "check_ptr",
    "check_ptrs",
    "num_rows",
    "resolve_ptrs",
    "resolve_sizes",
    "rows_ascend",
    "waits_for_nothing",
]

_INTEGERS = (torch.int64, torch.int32)


def waits_for_nothing(device: torch.device) -> bool:
    """Whether the host must not wait for the device now: in compiled code, while a CUDA graph is captured, and on the
    meta device, where there is nothing to wait for."""
    if torch.compiler.is_compiling() or device.type == "meta":
        return True
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def resolve_sizes(
    edge_index: Tensor,
    num_tokens: int | None,
    num_targets: int | None,
    num_sources: int | None,
    target_ptr: Tensor | None = None,
    source_ptr: Tensor | None = None,
) -> tuple[int, int]:
    """Sizes from whichever of the arguments the caller gave; what is missing comes from the end of the member pointers,
    or else from the largest index."""
    check_edge_index_form(edge_index)
    if num_tokens is not None:
        if num_targets is not None or num_sources is not None:
            raise ArgumentError("give num_tokens (square) or num_targets and num_sources (bipartite), not both")
        num_targets = num_sources = num_tokens
    shared = target_ptr is source_ptr
    if num_targets is None and target_ptr is not None:
        num_targets = _end_of("ptr" if shared else "target_ptr", target_ptr, edge_index.device)
        num_sources = num_targets if shared and num_sources is None else num_sources
    if num_sources is None and source_ptr is not None:
        num_sources = _end_of("ptr" if shared else "source_ptr", source_ptr, edge_index.device)
    if num_targets is None and num_sources is None:
        num_targets = num_sources = _size_of(edge_index)
    elif num_targets is None:
        num_targets = _size_of(edge_index[1])
    elif num_sources is None:
        num_sources = _size_of(edge_index[0])
    assert num_targets is not None and num_sources is not None
    for name, size in (("num_targets", num_targets), ("num_sources", num_sources)):
        if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)):
            raise ArgumentTypeError(f"{name} must be an int, got {size!r}")
        if size < 0:
            raise ArgumentError(f"{name} must not be negative, got {size}")
    return num_targets, num_sources


def _end_of(name: str, ptr: Tensor, device: torch.device) -> int:
    check_ptr_form(name, ptr, device)
    return int(ptr[-1])


def _size_of(index: Tensor) -> int:
    if index.is_meta:
        raise ArgumentError(
            "num_tokens, or num_targets and num_sources, must be given for an edge_index on the meta device, which "
            "holds no values"
        )
    return int(index.max()) + 1 if index.numel() else 0


def resolve_ptrs(
    ptr: Tensor | None, target_ptr: Tensor | None, source_ptr: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Member pointers of both sides, from ``ptr`` (square) or from the two."""
    if ptr is not None:
        if target_ptr is not None or source_ptr is not None:
            raise ArgumentError("give ptr (square) or target_ptr and source_ptr (bipartite), not both")
        return ptr, ptr
    if (target_ptr is None) != (source_ptr is None):
        missing = "target_ptr" if target_ptr is None else "source_ptr"
        raise ArgumentError(f"target_ptr and source_ptr come together, got no {missing}")
    return target_ptr, source_ptr


def check_edge_index_form(edge_index: Tensor) -> None:
    """Type, dtype and shape of an ``edge_index``; no value is read."""
    if not isinstance(edge_index, Tensor):
        raise ArgumentTypeError(
            f"edge_index must be an integer tensor of shape [2, E], got {type(edge_index).__name__}"
        )
    if edge_index.dtype not in _INTEGERS:
        raise ArgumentTypeError(f"edge_index must be int64 (or int32), got {edge_index.dtype}")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ArgumentError(
            f"edge_index must have shape [2, E] (sources, targets), got {list(edge_index.shape)}"
            + ("; did you mean edge_index.t()?" if edge_index.dim() == 2 and edge_index.shape[1] == 2 else "")
        )


def check_edge_index(edge_index: Tensor, num_targets: int, num_sources: int) -> None:
    """Form of an ``edge_index`` and the range of its values."""
    check_edge_index_form(edge_index)
    if waits_for_nothing(edge_index.device) or edge_index.shape[1] == 0:
        return
    # Twice one row, because aminmax(dim=1) is several times slower.
    bounds = torch.stack([*edge_index[0].aminmax(), *edge_index[1].aminmax()])
    low_source, high_source, low_target, high_target = bounds.tolist()
    for row, what, low_value, high_value, size in (
        (0, "source", low_source, high_source, num_sources),
        (1, "target", low_target, high_target, num_targets),
    ):
        if low_value < 0 or high_value >= size:
            bad = low_value if low_value < 0 else high_value
            raise ArgumentError(
                f"edge_index[{row}] ({what}) must lie in 0..{size - 1} for {size} {what} tokens, got {bad}"
            )


def num_rows(rowptr: Tensor) -> int:
    """Number of targets that ``rowptr`` stands for."""
    if not isinstance(rowptr, Tensor) or rowptr.dtype not in _INTEGERS:
        got = rowptr.dtype if isinstance(rowptr, Tensor) else type(rowptr).__name__
        raise ArgumentTypeError(f"rowptr must be a tensor of int64 or int32, got {got}")
    if rowptr.dim() != 1 or rowptr.shape[0] == 0:
        raise ArgumentError(f"rowptr must have shape [number of targets + 1], got {list(rowptr.shape)}")
    return rowptr.shape[0] - 1


def check_csr(rowptr: Tensor, col: Tensor, num_sources: int) -> None:
    """Consistency of CSR arrays."""
    num_rows(rowptr)
    if not isinstance(col, Tensor) or col.dtype not in _INTEGERS:
        got = col.dtype if isinstance(col, Tensor) else type(col).__name__
        raise ArgumentTypeError(f"col must be a tensor of int64 or int32, got {got}")
    if col.dim() != 1:
        raise ArgumentError(f"col must have one dimension, got shape {list(col.shape)}")
    if rowptr.dtype != col.dtype or rowptr.device != col.device:
        raise ArgumentTypeError(
            f"rowptr and col must share dtype and device, got {rowptr.dtype} on {rowptr.device} "
            f"and {col.dtype} on {col.device}"
        )
    if waits_for_nothing(rowptr.device):
        return
    if int(rowptr[0]) != 0 or int(rowptr[-1]) != col.shape[0] or bool((rowptr.diff() < 0).any()):
        raise ArgumentError(f"rowptr must rise from 0 to the number of edges, {col.shape[0]}")
    if col.numel() and (int(col.min()) < 0 or int(col.max()) >= num_sources):
        raise ArgumentError(f"col must lie in 0..{num_sources - 1}, got {int(col.min())}..{int(col.max())}")
    if not rows_ascend(rowptr, col):
        raise ArgumentError("col must ascend inside each row; use from_edge_index for edges in any order")


def rows_ascend(rowptr: Tensor, col: Tensor) -> bool:
    """Whether the sources of each target ascend."""
    begins = torch.zeros(col.shape[0] + 1, dtype=torch.bool, device=col.device)
    begins[rowptr.long()] = True
    # A fall is allowed only where a row begins.
    return not bool(((col[1:] < col[:-1]) & ~begins[1:-1]).any())


def check_ptr_form(name: str, ptr: Tensor, device: torch.device) -> None:
    """Type, dtype, shape and device of member pointers; no value is read."""
    if not isinstance(ptr, Tensor) or ptr.dtype not in _INTEGERS or ptr.dim() != 1 or ptr.shape[0] < 1:
        got = f"{ptr.dtype} of shape {list(ptr.shape)}" if isinstance(ptr, Tensor) else type(ptr).__name__
        raise ArgumentTypeError(f"{name} must be an integer tensor of shape [B + 1], got {got}")
    if ptr.device != device:
        raise ArgumentError(f"{name} must be on the device of the edges, {device}, got {ptr.device}")


def check_ptr(name: str, ptr: Tensor, size: int, device: torch.device) -> None:
    """Member pointers of one side of a batch."""
    check_ptr_form(name, ptr, device)
    if waits_for_nothing(device):
        return
    if int(ptr[0]) != 0 or int(ptr[-1]) != size or bool((ptr.diff() < 0).any()):
        raise ArgumentError(
            f"{name} must rise from 0 to the number of tokens, {size}, got {int(ptr[0])}..{int(ptr[-1])}"
        )


def check_ptrs(
    target_ptr: Tensor | None,
    source_ptr: Tensor | None,
    num_targets: int,
    num_sources: int,
    device: torch.device,
) -> None:
    """Member pointers of both sides of a batch (see :func:`resolve_ptrs`)."""
    if target_ptr is None or source_ptr is None:
        return
    shared = target_ptr is source_ptr
    check_ptr("ptr" if shared else "target_ptr", target_ptr, num_targets, device)
    if not shared or num_sources != num_targets:
        check_ptr("ptr" if shared else "source_ptr", source_ptr, num_sources, device)
    if target_ptr.shape != source_ptr.shape:
        raise ArgumentError(
            "target_ptr and source_ptr must have one entry for each member and one more, got "
            f"{target_ptr.shape[0]} and {source_ptr.shape[0]} entries"
        )


def check_members(edge_index: Tensor, target_ptr: Tensor | None, source_ptr: Tensor | None) -> None:
    """No edge may leave its member: a batch never leaks."""
    if target_ptr is None or source_ptr is None or waits_for_nothing(edge_index.device):
        return
    source_member = batch_vector(source_ptr, int(source_ptr[-1]), edge_index.device)[edge_index[0]]
    target_member = batch_vector(target_ptr, int(target_ptr[-1]), edge_index.device)[edge_index[1]]
    leaks = source_member != target_member
    if bool(leaks.any()):
        edge = int(leaks.nonzero()[0])
        source, target = edge_index[:, edge].tolist()
        raise ArgumentError(
            f"no edge may join two members of a batch, but edge {edge} joins source {source} (member "
            f"{int(source_member[edge])}) and target {target} (member {int(target_member[edge])}); "
            "check ptr, or leave it out to treat all tokens as one graph"
        )
