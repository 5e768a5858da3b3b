"""Graphs of short lists: each block of targets reads one list of sources, and no edge is listed unless asked for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels.lists import SourceLists

__all__ = ["ListGraph", "from_lists", "leading_of", "plain_lists"]

_AXES = ("", "h", "b", "bh")


class ListGraph(TokenGraph):
    """A graph in which the targets of a block share what they read. Made by :meth:`TokenGraph.from_lists`,
    :meth:`TokenGraph.top_k` with a block, and :mod:`graphattn.graph.subsample`.

    Attention reads the lists; other operations see edges, target-major with ascending sources, that are enumerated at
    first use.
    """

    _tensor_fields = (*TokenGraph._tensor_fields, "_index", "_length", "_places")
    _static_fields = (*TokenGraph._static_fields, "block", "is_causal", "reads_itself", "is_disjoint")

    _index: Tensor
    _length: Tensor | None
    _places: Tensor | None

    def __init__(self, lists: SourceLists, leading: tuple[int, ...] = (), ptr: Tensor | None = None) -> None:
        super().__init__(
            None,
            num_targets=lists.num_targets,
            num_sources=lists.num_sources,
            target_ptr=ptr,
            source_ptr=ptr,
            leading=leading,
            leading_axes=lists.leading,
        )
        self._index, self._length, self._places = lists.index, lists.length, lists.target
        self.block, self.is_causal, self.reads_itself = lists.block, lists.causal, lists.own
        self.is_disjoint = lists.disjoint

    @property
    def lists(self) -> SourceLists:
        """The lists as the kernels see them."""
        return SourceLists(
            self._index,
            self._length,
            self._places,
            self._num_targets,
            self._num_sources,
            self.block,
            self._leading_axes,
            self.is_causal,
            self.reads_itself,
            self.is_disjoint,
        )

    @property
    def index(self) -> Tensor:
        """``[*leading, blocks, m]``: the sources that each block of targets reads."""
        return self._index.view(*self._leading, *self._index.shape[1:])

    @property
    def lengths(self) -> Tensor | None:
        """``[*leading, blocks]``: how many entries of each list are read; ``None``: all."""
        return None if self._length is None else self._length.view(*self._leading, *self._length.shape[1:])

    @property
    def target_order(self) -> Tensor | None:
        """``[places]`` or ``[*leading, places]``: the target at each place of the blocks, -1 for nobody; ``None``:
        place ``i`` holds target ``i``."""
        if self._places is None or self._places.shape[0] == 1:
            return None if self._places is None else self._places[0]
        return self._places.view(*self._leading, *self._places.shape[1:])

    @property
    def max_edges(self) -> int:
        """An upper bound of :attr:`num_edges` that never enumerates."""
        return self.num_copies * self._num_targets * (self._index.shape[2] + self.reads_itself)

    @property
    def known_causal(self) -> bool:
        """Whether targets skip the sources after them."""
        return self.is_causal

    @property
    def has_duplicates(self) -> bool:
        """``False``: a list names each source once."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the lists live."""
        return self._index.device

    def causal(self, *, keep_self: bool = True) -> ListGraph:
        """The same lists, in which targets skip the sources that stand after them.

        Args:
            keep_self: Every target reads itself, whether or not it stands in its list, so that no row is empty.
        """
        self._need_square("causal")
        lists = self.lists
        index = _ascending(lists.index, lists.length)
        lists = lists._replace(index=index, causal=True, own=keep_self or self.reads_itself, disjoint=False)
        return ListGraph(lists, self._leading, self._target_ptr)

    def _enumerate(self) -> Csr:
        targets, sources, room = self._num_targets, self._num_sources, self._index.shape[2]
        copies, device = self.num_copies, self.device
        lists = self.lists
        index, used = self._index.long(), lists.used()
        index = (index if used is None else index.masked_fill(~used, sources)).sort(-1).values
        index = torch.cat([index, index.new_full((copies, 1, room), sources)], 1)  # one list more, for those without
        token = torch.arange(targets, device=device)
        if self._places is None:
            at = (token // max(self.block, 1)).expand(copies, -1)
        else:
            place = torch.where(self._places < 0, targets, self._places).long()
            at = place.new_full((place.shape[0], targets + 1), lists.blocks)
            number = torch.arange(place.shape[1], device=device) // self.block
            at = at.scatter_(1, place, number.expand_as(place))[:, :-1].expand(copies, -1)
        source = index.gather(1, at.unsqueeze(-1).expand(-1, -1, room))
        if self.reads_itself:
            again = source == token[:, None]
            source = torch.cat([source.masked_fill(again, sources), token[:, None].expand(copies, -1, 1)], -1)
            source = source.sort(-1).values
        copy = torch.arange(copies, device=device).view(-1, 1, 1) * sources
        if used is None and self._places is None and not (self.is_causal or self.reads_itself):
            dtype = index_dtype(copies * targets, copies * sources, copies * targets * room)
            rowptr = torch.arange(copies * targets + 1, device=device, dtype=dtype) * room
            return Csr(rowptr, (source + copy).flatten().to(dtype), None)
        keep = source < sources
        if self.is_causal:
            keep = keep & (source <= token[:, None])
        col = (source + copy)[keep]
        count = keep.sum(-1).flatten()
        dtype = index_dtype(copies * targets, copies * sources, col.shape[0])
        return Csr(torch.cat([count.new_zeros(1), count.cumsum(0)]).to(dtype), col.to(dtype), None)

    def __repr__(self) -> str:
        size = f"{self._num_targets}" if self.is_square else f"{self._num_targets} <- {self._num_sources}"
        parts = [f"tokens={size}", f"block={self.block}", f"lists={self._index.shape[1]} x {self._index.shape[2]}"]
        if self._leading:
            parts.append(f"leading={tuple(self._leading)}")
        for name in ("is_causal", "reads_itself"):
            if getattr(self, name):
                parts.append(f"{name}=True")
        return f"{type(self).__name__}({', '.join(parts)}, device={str(self.device)!r})"


def from_lists(
    index: Tensor,
    *,
    block: int,
    num_targets: int,
    num_sources: int | None = None,
    lengths: Tensor | None = None,
    axes: str = "",
    order: Tensor | None = None,
    causal: bool = False,
    keep_self: bool = False,
    disjoint: bool = False,
    ptr: Tensor | None = None,
    validate: bool = True,
) -> ListGraph:
    """See :meth:`TokenGraph.from_lists`."""
    num_sources = num_targets if num_sources is None else num_sources
    if not isinstance(index, Tensor) or index.dtype not in (torch.int32, torch.int64):
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise ArgumentTypeError(f"index must be an integer tensor [..., blocks, m], got {got}")
    if not isinstance(block, int) or block < 1:
        raise ArgumentError(f"block must be a positive int, got {block!r}")
    leading = leading_of("index", index, axes, 2)
    blocks, room = index.shape[-2:]
    needed = -(-num_targets // block) if order is None else -(-order.shape[-1] // block)
    if blocks != needed:
        what = f"{num_targets} targets" if order is None else f"{order.shape[-1]} places"
        raise ArgumentError(f"index must have {needed} lists for {what} in blocks of {block}, got {list(index.shape)}")
    if (causal or keep_self) and num_targets != num_sources:
        raise ArgumentError(
            f"causal and keep_self need a square graph, got {num_targets} targets and {num_sources} sources"
        )
    index = index.reshape(math.prod(leading), blocks, room)
    if lengths is not None:
        if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int32, torch.int64):
            got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
            raise ArgumentTypeError(f"lengths must be an integer tensor [..., blocks], got {got}")
        lengths = lengths.int().expand(*leading, blocks).reshape(index.shape[:2]).contiguous()
    if order is not None:
        order = order.int().reshape(math.prod(order.shape[:-1]), order.shape[-1])
        order = torch.nn.functional.pad(order, (0, -order.shape[-1] % block), value=-1).contiguous()
        if order.shape[0] not in (1, index.shape[0]):
            raise ArgumentError(f"order must have no leading dimensions or {list(leading)}, got {list(order.shape)}")
    disjoint = disjoint and lengths is None and not causal and not keep_self
    if causal:
        index = _ascending(index, lengths)
    lists = SourceLists(
        *(index.contiguous(), lengths, order, num_targets, num_sources, block, axes, causal, keep_self, disjoint)
    )
    if validate:
        _check(lists)
    return ListGraph(lists, leading, ptr)


def leading_of(name: str, x: Tensor, axes: str, own: int) -> tuple[int, ...]:
    """The leading dimensions of a tensor with so many dimensions of its own, if they are what ``axes`` says."""
    if axes not in _AXES:
        raise ArgumentError(f"axes must be one of {_AXES}, got {axes!r}")
    if x.dim() != len(axes) + own:
        named = {"": "no leading dimension", "h": "[H]", "b": "[B]", "bh": "[B, H]"}[axes]
        raise ArgumentError(f"{name} must have {named} before its last {own} for axes={axes!r}, got {list(x.shape)}")
    return tuple(x.shape[: len(axes)])


def _ascending(index: Tensor, length: Tensor | None) -> Tensor:
    """The entries in use in ascending order; the others, behind them, repeat the last in use, or are anything."""
    if length is None:
        return index.sort(-1).values
    used = torch.arange(index.shape[-1], device=index.device) < length.unsqueeze(-1)
    entry = index.masked_fill(~used, torch.iinfo(index.dtype).max).sort(-1).values
    return torch.where(used, entry, 0)


def _check(lists: SourceLists) -> None:
    """Raise unless every entry in use is a source, named once in its list (and once at all where it is promised)."""
    index, used, sources = lists.index.long(), lists.used(), lists.num_sources
    device: Any = index.device
    if lists.length is not None and lists.length.device != device:
        raise ArgumentError(f"lengths must be on the device of index, {device}, got {lists.length.device}")
    if lists.length is not None and bool(((lists.length < 0) | (lists.length > lists.room)).any()):
        raise ArgumentError(f"lengths must lie in 0..{lists.room}, got {lists.length.tolist()}")
    if used is not None:
        index = index.masked_fill(~used, -1)
        inside = index[used]
    else:
        inside = index
    if inside.numel() and bool(((inside < 0) | (inside >= sources)).any()):
        raise ArgumentError(f"index must lie in 0..{sources - 1}, got {int(inside.min())}..{int(inside.max())}")
    for rows, what in ((index, "each list of index"), (index.flatten(1), "index with disjoint=True")):
        if rows is index or lists.disjoint:
            entry = rows.sort(-1).values
            if bool(((entry[..., 1:] == entry[..., :-1]) & (entry[..., 1:] >= 0)).any()):
                raise ArgumentError(f"{what} must name each source once, got some source twice")
    if lists.target is not None:
        place = lists.target.sort(-1).values
        again = (place[:, 1:] == place[:, :-1]) & (place[:, 1:] >= 0)
        if bool((place >= lists.num_targets).any() | again.any()):
            raise ArgumentError(f"order must hold each of {lists.num_targets} targets once, and -1 where nobody stands")


def plain_lists(graph: ListGraph) -> Tensor | None:
    """int64 ``[copies, blocks, m]`` ascending, where the lists are nothing but that: every target of a block reads all
    of its list, and blocks are full; else ``None``."""
    lists = graph.lists
    simple = lists.length is None and lists.target is None and not (lists.causal or lists.own)
    if not simple or lists.blocks * lists.block != lists.num_targets:
        return None
    return lists.index.long().sort(-1).values
