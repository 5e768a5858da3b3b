"""How a graph of short lists reaches the kernels: each block of targets reads one list of sources."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["SourceLists", "to_mask"]


class SourceLists(NamedTuple):
    """A graph in which the targets of a block share what they read.

    A list names each source once. Where copies of the graph differ (``leading``), they stand one after the other.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """int32 or int64 ``[copies, blocks, m]``: the sources that each block of targets reads."""
    length: Tensor | None
    """int32 ``[copies, blocks]``: how many entries of each list are read, the others being anything; ``None``: all."""
    target: Tensor | None
    """int32 ``[1 or copies, blocks * block]``: the target at each place, -1 for nobody; each target stands at one place
    at most, and reads nobody if it stands at none. ``None``: place ``i`` holds target ``i``."""
    num_targets: int
    num_sources: int
    block: int
    """Places in a block of targets; any number."""
    leading: str
    """Which of batch and heads have a graph of their own: ``""``, ``"h"``, ``"b"`` or ``"bh"`` (batch-major)."""
    causal: bool
    """Targets skip the sources with a larger number than their own. The entries in use of each list ascend, then."""
    own: bool
    """Each target reads itself, whether or not it stands in its list."""
    disjoint: bool
    """The lists of one copy are all in use, and have no source in common: then every row of k is read for one list."""

    @property
    def blocks(self) -> int:
        """Number of blocks, and of lists, in a copy."""
        return self.index.shape[1]

    @property
    def room(self) -> int:
        """Entries of a list, those that are not in use counted."""
        return self.index.shape[2]

    def copies(self, batch: int, heads: int) -> int:
        """Number of graphs for these sizes."""
        return (batch if "b" in self.leading else 1) * (heads if "h" in self.leading else 1)

    def places(self) -> Tensor:
        """int64 ``[1 or copies, blocks, block]``: the target at each place, -1 for nobody."""
        if self.target is not None:
            return self.target.view(self.target.shape[0], self.blocks, self.block).long()
        place = torch.arange(self.blocks * self.block, device=self.index.device)
        return place.masked_fill_(place >= self.num_targets, -1).view(1, self.blocks, self.block)

    def used(self) -> Tensor | None:
        """bool ``[copies, blocks, m]``: which entries are read; ``None``: all."""
        if self.length is None:
            return None
        return torch.arange(self.room, device=self.index.device) < self.length.unsqueeze(-1)


# The arguments that stand for SourceLists in an operator's schema, in the order of the fields.
SCHEMA = (
    "Tensor lists, Tensor? list_length, Tensor? target, SymInt num_targets, SymInt num_sources, SymInt block, "
    "str leading, bool causal, bool own, bool disjoint"
)
NUM_ARGS = 10


def unflat(args: tuple[Any, ...]) -> SourceLists:
    """The lists of the arguments of :data:`SCHEMA`; further arguments are ignored."""
    return SourceLists(*args[:NUM_ARGS])


def to_mask(lists: SourceLists) -> Tensor:
    """bool ``[copies, T, S]``: may the target read the source?"""
    copies, blocks, _ = lists.index.shape
    device, targets, sources = lists.index.device, lists.num_targets, lists.num_sources
    index, used = lists.index.long(), lists.used()
    if used is not None:
        index = index.masked_fill(~used, sources)  # one column more, for those that are not read
    read = torch.zeros(copies, blocks, sources + 1, dtype=torch.bool, device=device)
    read.scatter_(2, index, True)
    place = lists.places().expand(copies, -1, -1).flatten(1)
    row = torch.where(place < 0, targets, place)
    mask = torch.zeros(copies, targets + 1, sources, dtype=torch.bool, device=device)
    rows = read[:, :, :sources].repeat_interleave(lists.block, 1)
    mask.scatter_(1, row.unsqueeze(-1).expand(-1, -1, sources), rows)
    mask = mask[:, :targets]
    t, s = torch.arange(targets, device=device)[:, None], torch.arange(sources, device=device)
    if lists.causal:
        mask = mask & (s <= t)
    return mask | (s == t) if lists.own else mask
