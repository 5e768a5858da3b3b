"""Uniform subsets of each member of a ragged batch."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph.lists import ListGraph
from graphattn.graph.order import align_members
from graphattn.graph.subsample.chance import Generator, count_kept, counts_kept, draw
from graphattn_kernels.lists import SourceLists

__all__ = ["ragged_sources", "ragged_uniform"]


def ragged_sources(
    ptr: Tensor,
    keep: float,
    *,
    num_tokens: int,
    generator: Generator = None,
    minimum: int = 8,
    always: Tensor | None = None,
) -> Tensor:
    """A uniform subset of each member of a ragged batch, m_g = min(n_g, max(minimum, ceil(keep n_g))).

    Args:
        ptr: ``[G + 1]`` first token of each member.
        keep: Share that is kept.
        num_tokens: The last entry of ``ptr``.
        generator: See :func:`uniform_sources`.
        minimum: Least number of tokens of a member, where it has that many.
        always: bool ``[N]`` tokens that are kept in any case; they count among the m_g first.

    Returns:
        bool ``[N]``: which tokens are kept.
    """
    order, rank, count, member = _shuffled(ptr, keep, num_tokens, generator, minimum, always)
    kept = rank < count.index_select(0, member)
    return torch.empty_like(kept).scatter_(0, order, kept)


def ragged_uniform(
    ptr: Tensor,
    keep: float,
    *,
    num_tokens: int,
    most: int,
    generator: Generator = None,
    minimum: int = 8,
    always: Tensor | None = None,
    most_always: int | None = None,
    block: int = 64,
) -> ListGraph:
    """Every token reads a uniform subset of its own member of a ragged batch (:func:`ragged_sources`).

    Args:
        ptr: ``[G + 1]`` first token of each member.
        keep: Share that is kept.
        num_tokens: The last entry of ``ptr``.
        most: Tokens of the largest member, or more: a number on the host, so that nothing waits for the device.
        generator: See :func:`uniform_sources`.
        minimum: Least number of sources, where a member has that many.
        always: bool ``[N]`` tokens that are kept in any case.
        most_always: So many of a member's tokens are in ``always``, or fewer: a number on the host, like ``most``;
            ``None``: there may be as many as a member has.
        block: Targets that share a list; every member begins a block of its own.
    """
    order, _, count, _ = _shuffled(ptr, keep, num_tokens, generator, minimum, always)
    if most_always is None:
        most_always = 0 if always is None else most
    room = max(1, count_kept(most, keep, max(minimum, most_always)))  # no list is longer, so that none is cut
    begin = ptr.to(order.device).long()
    places, _ = align_members(begin, num_tokens, block)
    blocks = places.shape[0] // block
    own = (begin.diff() + block - 1) // block  # blocks of each member
    member = torch.searchsorted(own.cumsum(0), torch.arange(blocks, device=order.device), right=True)
    used = member < own.shape[0]
    member = member.clamp_(max=max(own.shape[0] - 1, 0))
    at = begin.index_select(0, member)[:, None] + torch.arange(room, device=order.device)
    index = order[at.clamp_(max=max(num_tokens - 1, 0))] if num_tokens else at
    length = torch.where(used, count.index_select(0, member), 0).clamp(max=room).int()
    lists = SourceLists(
        *(index.unsqueeze(0), length.unsqueeze(0), places.unsqueeze(0), num_tokens, num_tokens, block),
        *("", False, False, False),
    )
    return ListGraph(lists, (), ptr)


def _shuffled(
    ptr: Tensor, keep: float, num_tokens: int, generator: Generator, minimum: int, always: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens of each member in random order, their rank in it, how many are kept of each member, and the member at each
    rank."""
    if not 0.0 <= keep <= 1.0:
        raise ArgumentError(f"keep must be a share in 0..1, got {keep}")
    begin = ptr.long()
    sizes = begin.diff()
    member = torch.repeat_interleave(torch.arange(sizes.shape[0], device=ptr.device), sizes, output_size=num_tokens)
    drawn = draw(torch.rand, (num_tokens,), generator, ptr.device)
    if always is not None:
        drawn = drawn.masked_fill(always, -1.0)
    order = drawn.argsort()
    order = order[member[order].argsort(stable=True)]
    rank = torch.arange(num_tokens, device=ptr.device) - begin.index_select(0, member)
    count = counts_kept(sizes, keep, minimum)
    if always is not None:
        count = torch.maximum(count, torch.zeros_like(sizes).index_add_(0, member, always.long()))
    return order, rank, torch.minimum(count, sizes), member
