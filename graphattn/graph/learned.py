"""Graphs from scores: each target, or each block of targets, reads the sources that score best.

The choice has no gradient, is deterministic (of equal scores the source with the lowest number wins; NaN counts as the
largest score, -inf is never chosen), and on CUDA nothing waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.bits import BitGraph
from graphattn.graph.lists import ListGraph, leading_of
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels.lists import SourceLists
from graphattn_kernels.select_sources import select_bits, select_lists

__all__ = ["threshold", "top_k"]

# Sources up to which a choice for each target is held as bits, however few are chosen: masks then cost nothing.
_ALWAYS_BITS = 2048


def top_k(
    scores: Tensor,
    k: int,
    *,
    axes: str = "",
    always: Tensor | None = None,
    full_rows: Tensor | None = None,
    keep_self: bool = False,
    block: int | None = None,
    num_targets: int | None = None,
) -> TokenGraph:
    """See :meth:`TokenGraph.top_k`."""
    leading, scores = _flat(scores, axes)
    sources = scores.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ArgumentError(f"k must be an int, 0 or more, got {k!r}")
    k = min(k, sources)
    if block is None:
        if num_targets not in (None, scores.shape[1]):
            raise ArgumentError(f"num_targets must be the rows of scores, {scores.shape[1]}, got {num_targets}")
        _check_rows(full_rows, keep_self, scores.shape[1], sources)
        if full_rows is not None or sources <= _ALWAYS_BITS or 32 * k >= sources:
            mask, _ = _always(always, scores, count=False)
            words = select_bits(scores, k, always=mask, full=full_rows, keep_self=keep_self)
            return BitGraph(words.view(*leading, *words.shape[1:]), sources, axes)
    elif full_rows is not None:
        raise ArgumentError("full_rows goes with a choice for each target, not with a block")
    size = 1 if block is None else block
    if not isinstance(size, int) or size < 1:
        raise ArgumentError(f"block must be a positive int, got {block!r}")
    targets = num_targets if num_targets is not None else sources if block is not None else scores.shape[1]
    if -(-targets // size) != scores.shape[1]:
        raise ArgumentError(
            f"scores must be [..., {-(-targets // size)}, S], a row for each block of {size} of the {targets} targets, "
            f"got {scores.shape[1]} rows; a block's scores are the mean or the largest of its targets', say"
        )
    _check_rows(None, keep_self, targets, sources)
    mask, count = _always(always, scores, count=True)
    room = min(k + count + (size if keep_self else 0), sources)
    index, length = select_lists(scores, k, always=mask, room=room, own=size if keep_self else 0)
    lists = SourceLists(index, length, None, targets, sources, size, axes, False, False, False)
    return ListGraph(lists, leading)


def threshold(
    scores: Tensor,
    at: float,
    *,
    axes: str = "",
    always: Tensor | None = None,
    full_rows: Tensor | None = None,
    keep_self: bool = False,
) -> TokenGraph:
    """See :meth:`TokenGraph.threshold`."""
    leading, scores = _flat(scores, axes)
    _check_rows(full_rows, keep_self, *scores.shape[1:])
    mask, _ = _always(always, scores, count=False)
    words = select_bits(scores, at=at, always=mask, full=full_rows, keep_self=keep_self)
    return BitGraph(words.view(*leading, *words.shape[1:]), scores.shape[-1], axes)


def _flat(scores: Tensor, axes: str) -> tuple[tuple[int, ...], Tensor]:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise ArgumentTypeError(f"scores must be a floating tensor [..., T, S], got {got}")
    leading = leading_of("scores", scores, axes, 2)
    return leading, scores.detach().reshape(math.prod(leading), *scores.shape[-2:])


def _check_rows(full_rows: Tensor | None, keep_self: bool, targets: int, sources: int) -> None:
    if keep_self and targets != sources:
        raise ArgumentError(f"keep_self needs as many targets as sources, got {targets} and {sources}")
    if full_rows is None:
        return
    if not isinstance(full_rows, Tensor) or full_rows.dtype != torch.bool or full_rows.shape != (targets,):
        tensor = isinstance(full_rows, Tensor)
        got = f"{full_rows.dtype} {list(full_rows.shape)}" if tensor else type(full_rows).__name__
        raise ArgumentError(f"full_rows must be bool [{targets}], got {got}")


def _always(always: Tensor | None, scores: Tensor, *, count: bool) -> tuple[Tensor | None, int]:
    """The sources that every row keeps, as a mask, and how many they are (asked of the device only for a mask)."""
    if always is None:
        return None, 0
    if not isinstance(always, Tensor) or always.dtype not in (torch.bool, torch.int64, torch.int32):
        got = always.dtype if isinstance(always, Tensor) else type(always).__name__
        raise ArgumentTypeError(f"always must be a bool tensor [S] or integer indices, got {got}")
    sources = scores.shape[-1]
    if always.dim() != 1 or (always.dtype == torch.bool and always.shape[0] != sources):
        raise ArgumentError(f"always must be bool [{sources}] or integer [a], got {always.dtype} {list(always.shape)}")
    if always.dtype == torch.bool:
        return always, int(always.sum()) if count else 0
    wrong = (always < 0) | (always >= sources)
    text = f"always must hold sources in 0..{sources - 1}"
    if always.device.type != "cpu":
        torch._assert_async(~wrong.any(), text)  # waits for nothing
    elif not torch.compiler.is_compiling() and bool(wrong.any()):
        raise ArgumentError(f"{text}, got {int(always[wrong][0])}")
    mask = torch.zeros(sources, dtype=torch.bool, device=scores.device)
    return mask.index_fill_(0, always.long().to(scores.device), True), always.shape[0]
