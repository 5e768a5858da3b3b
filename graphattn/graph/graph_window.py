"""The graph of a prompt that describes a graph: causal, but for node tokens, which read near node tokens only."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.pattern import Pattern
from graphattn.graph.reach import node_adjacency, same_node, tree_adjacency, within_hops
from graphattn.graph.rules import Causal
from graphattn.graph.window_maps import check_maps
from graphattn_kernels.bits import WORD, to_blocks
from graphattn_kernels.blocks import Blocks
from graphattn_kernels.select_sources import select_bits

__all__ = ["Direction", "Distance", "GraphWindow", "graph_window"]

Direction = Literal["uni", "bidi"]
Distance = Literal["occurrence", "node"]
Padding = Literal["none", "left", "right", "mixed"]


class GraphWindow(Pattern):
    """Causal but for a few rows: a node token reads earlier text, and node tokens within its window.

    Made by :func:`graph_window`. Batched prompts are a graph with a leading dimension ``[B]``; a token of padding reads
    nobody and is read by nobody.
    """

    _tensor_fields = (*Pattern._tensor_fields, "slot", "near", "mask", "rows", "_row_mask", "_pair_mask")
    _static_fields = (*Pattern._static_fields, "direction", "padding", "_num_edges")
    _derived = (*Pattern._derived, "_row_blocks")
    _row_blocks: Blocks | None = None

    def __init__(
        self,
        slot: Tensor,
        near: Tensor,
        mask: Tensor | None,
        rows: Tensor,
        direction: Direction,
        padding: Padding,
        batched: bool,
    ) -> None:
        super().__init__(slot.shape[1], slot.shape[1], device=slot.device)
        if batched:
            self._leading, self._leading_axes = (slot.shape[0],), "b"
        self.slot = slot
        """int64 ``[copies, T]``: which vertex of ``near`` a token stands for, -1 for text."""
        self.near = near
        """Boolean ``[copies, V, V]``: the window."""
        self.mask = mask
        """Boolean ``[copies, T]``: what is no padding; ``None``: all."""
        self.rows = rows
        """int64 ``[copies, R]``: the node tokens, in order; ``T`` where a prompt has fewer."""
        self.direction: Direction = direction
        self.padding: Padding = padding
        self._num_edges: int | None = None
        self._row_mask: Tensor | None = None
        self._pair_mask: Tensor | None = None

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        tokens = self._num_targets
        copy = target // tokens
        causal = source <= target
        reads = causal
        if self.rows.shape[1]:
            slot = self.slot.view(-1)
            t, s = slot[target], slot[source]
            near = self.near[copy, t.clamp(min=0), s.clamp(min=0)]
            if self.direction == "uni":
                near = near & causal
            reads = torch.where((t >= 0) & (s >= 0), near, causal)
        if self.num_copies > 1:
            reads = reads & (copy == source // tokens)
        if self.mask is not None:
            there = self.mask.view(-1)
            reads = reads & there[target] & there[source]
        return reads

    def mask_mod(self, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The rule as FlexAttention (and transformers) ask for it: entry of the batch, head, target, source."""
        first = b * self._num_targets
        return self.contains(first + t, first + s)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        node = _running(self.slot >= 0)
        windowed = (_among(node, t_first, t_last) > 0) & (_among(node, s_first, s_last) > 0)
        some, every = s_first <= t_last, (s_last <= t_first) & ~windowed
        if self.direction == "bidi":
            some = some | windowed
        if self.mask is not None:
            there = _running(self.mask)
            t_there, s_there = _among(there, t_first, t_last), _among(there, s_first, s_last)
            some = some & (t_there > 0) & (s_there > 0)
            every = every & (t_there == t_last - t_first + 1) & (s_there == s_last - s_first + 1)
        return some, every

    @property
    def row_mask(self) -> Tensor:
        """Boolean ``[copies, R, T]``: what the node tokens read. A row that no token stands for reads token 0, so that
        no softmax is empty."""
        if self._row_mask is None:
            token, first = self._tokens()
            row = first + self.rows.clamp(max=max(self._num_targets - 1, 0))
            absent = (self.rows == self._num_targets).unsqueeze(-1)
            reads = self.contains(row.unsqueeze(-1), (first + token).unsqueeze(1))
            self._row_mask = torch.where(absent, token == 0, reads)
        return self._row_mask

    @property
    def words(self) -> Tensor:
        """int32 ``[copies, T, ceil(T / 32)]``: the graph as bits, where node tokens read no later ones; waits for
        nothing."""
        copies, tokens = self.slot.shape
        first = torch.arange(0, tokens, WORD, device=self.device)
        earlier = (torch.arange(1, tokens + 1, device=self.device).unsqueeze(1) - first).clamp(0, WORD)
        causal = ((1 << earlier) - 1).int()  # of 32 bits, the lowest of a long: -1
        words = causal.new_empty(copies, tokens + 1, causal.shape[1])  # rows that no token stands for: past the end
        words[:, :-1] = causal
        if self.rows.shape[1]:
            number = self.rows.unsqueeze(-1).expand(-1, -1, words.shape[-1])
            words = words.scatter(1, number, select_bits(self.row_mask, at=0))
        words = words[:, :-1]
        if self.mask is not None:
            words = words & select_bits(self.mask.unsqueeze(1), at=0)
            words = words.masked_fill(~self.mask.unsqueeze(-1), 0)
        return words.contiguous()

    @property
    def row_blocks(self) -> Blocks:
        """:attr:`row_mask` as tiles."""
        if self._row_blocks is None:
            words = select_bits(self.row_mask, at=0)
            self._row_blocks = to_blocks(words, self._num_sources, leading=self._leading_axes)
        return self._row_blocks

    @property
    def pair_mask(self) -> Tensor:
        """Boolean ``[copies, T, T]``, as :meth:`to_dense`; padding, which reads nobody, reads token 0 here."""
        if self._pair_mask is None:
            pairs = self._pairs()
            if self.mask is not None:
                pairs = pairs | (~self.mask.unsqueeze(-1) & (self._tokens()[0] == 0))
            self._pair_mask = pairs
        return self._pair_mask

    @property
    def known_causal(self) -> bool:
        return self.direction == "uni"

    def to_dense(self) -> Tensor:
        """Boolean ``[..., T, T]``: may the target read the source?"""
        return self._pairs() if self._leading else self._pairs()[0]

    @property
    def num_edges(self) -> int:
        if self._num_edges is None:
            there = torch.ones_like(self.slot, dtype=torch.bool) if self.mask is None else self.mask
            text = (there.cumsum(1) * (there & (self.slot < 0))).sum()
            listed = (self.rows < self._num_targets).unsqueeze(-1)
            self._num_edges = int(text + (self.row_mask & listed).sum())
        return self._num_edges

    @property
    def max_edges(self) -> int:
        copies, tokens, rows = self.slot.shape[0], self._num_targets, self.rows.shape[1]
        ahead = rows * (rows - 1) // 2 if self.direction == "bidi" else 0
        return copies * (tokens * (tokens + 1) // 2 + ahead)

    def _enumerate(self) -> Csr:
        counts, sources = [], []
        for copy, pairs in enumerate(self._pairs()):
            counts.append(pairs.sum(1))
            sources.append(pairs.nonzero()[:, 1] + copy * self._num_targets)
        count = torch.cat([self.slot.new_zeros(1), *counts])
        col = torch.cat(sources)
        dtype = index_dtype(count.shape[0], self.slot.numel(), col.shape[0])
        return Csr(count.cumsum(0).to(dtype), col.to(dtype), None)

    def _tokens(self) -> tuple[Tensor, Tensor]:
        """The tokens of a copy, ``[T]``, and the number of the first token of each, ``[copies, 1]``."""
        copy = torch.arange(self.slot.shape[0], device=self.device).unsqueeze(1)
        return torch.arange(self._num_targets, device=self.device), copy * self._num_targets

    def _pairs(self) -> Tensor:
        token, first = self._tokens()
        number = first + token
        return self.contains(number.unsqueeze(-1), number.unsqueeze(1))

    def _parameters(self) -> dict[str, object]:
        return {"node_tokens": self.rows.shape[1], "direction": self.direction, "padding": self.padding}


def graph_window(
    node_of_token: Tensor,
    parent: Tensor,
    hops: int | None,
    direction: Direction = "uni",
    *,
    distance: Distance = "occurrence",
    node: Tensor | None = None,
    adjacency: Tensor | None = None,
    mask: Tensor | None = None,
    depth: int | None = None,
    node_tokens: int | None = None,
    padding: Padding | None = None,
) -> Causal | GraphWindow:
    """The window of a prompt that serialises a sampled graph: its Global Linkage Horizon (Guan et al., "Attention
    Mechanisms Perspective: Exploring LLM Processing of Graph-Structured Data", ICML 2025, arXiv 2505.02130).

    Text reads everything before it, and a node token all text before it. Of the node tokens, a node token reads those
    at most ``hops`` hops away: earlier ones (``"uni"``) or all (``"bidi"``). A last copy of the centre, with which the
    question is asked, is text: give it -1. The released code finds a node's parent by counting, which goes wrong after
    a node without children; here parents are given. Everything is computed where the tensors are; a tensor on a GPU is
    waited for once, unless ``node_tokens`` and ``padding`` are given.

    Args:
        node_of_token: Integer ``[T]`` or ``[B, T]``: the vertex, 0 to V - 1, that a token stands for, -1 for text.
            Several tokens may stand for one vertex.
        parent: Integer ``[V]`` or ``[B, V]``: the parent of each vertex of the serialised tree (or forest), -1 for a
            root and for a vertex that is not there.
        hops: The window k, 0 (a vertex reads itself only) or more; ``None``: no bound.
        direction: ``"uni"`` or ``"bidi"``. With ``"bidi"`` node tokens read later node tokens, so the model is not
            autoregressive inside the description of the graph.
        distance: ``"occurrence"``: hops in the tree, where a node that is written twice is two vertices (the released
            code). ``"node"``: hops in the sampled graph, where it is one; needs ``node``.
        node: Integer ``[V]`` or ``[B, V]``: the node of the graph that each vertex stands for, -1 for none.
        adjacency: Boolean ``[V, V]`` or ``[B, V, V]``, symmetric: edges between vertices, instead of the tree's.
        mask: Boolean ``[T]`` or ``[B, T]``: what is no padding; ``None``: all of it.
        depth: Depth L of a single tree, where it is known: a window of 2 L is then known to be no window.
        node_tokens: Most tokens of a prompt that stand for vertices, where it is known.
        padding: Where the padding is: ``"left"``, ``"right"``, ``"mixed"`` (anywhere else), where it is known.

    Returns:
        The plain causal pattern where the window hides nothing and nothing is padding; else a :class:`GraphWindow`.

    Raises:
        ArgumentTypeError: If a tensor has the wrong dtype.
        ArgumentError: If shapes or values do not fit.
    """
    batched = check_maps(node_of_token, parent, hops, direction, distance, node, adjacency, mask)
    if not batched:
        node_of_token, parent = node_of_token[None], parent[None]
        node, adjacency, mask = (None if x is None else x[None] for x in (node, adjacency, mask))
    bound = hops is not None and (depth is None or adjacency is not None or hops < 2 * depth)
    if not bound and direction == "uni":
        if mask is None:
            return Causal(node_of_token.shape[1], node_of_token.device)
        node_of_token, node_tokens = torch.full_like(node_of_token, -1), 0
    slot = node_of_token.long()
    if mask is not None:
        slot = torch.where(mask, slot, -1)
    if node_tokens is None or (padding is None and mask is not None):
        node_tokens, padding = _look(slot, mask)
    if node_tokens == 0:
        near = slot.new_zeros(slot.shape[0], 0, 0, dtype=torch.bool)
    elif not bound:
        near = torch.ones(parent.shape[0], parent.shape[1], parent.shape[1], dtype=torch.bool, device=slot.device)
    else:
        assert hops is not None
        near = _near(parent, hops, distance, node, adjacency)
    rows = (slot < 0).byte().argsort(dim=1, stable=True)[:, :node_tokens]
    rows = torch.where(slot.gather(1, rows) < 0, slot.shape[1], rows)
    return GraphWindow(slot, near, mask, rows, direction, padding or "none", batched)


def _near(parent: Tensor, hops: int, distance: Distance, node: Tensor | None, adjacency: Tensor | None) -> Tensor:
    if distance == "occurrence":
        return within_hops(tree_adjacency(parent) if adjacency is None else adjacency, hops)
    assert node is not None
    return within_hops(node_adjacency(parent, node) if adjacency is None else adjacency, hops, same_node(node))


def _look(slot: Tensor, mask: Tensor | None) -> tuple[int, Padding]:
    """How many node tokens a prompt has at most, and where padding is; waits for the device once."""
    most = (slot >= 0).sum(1).max() if slot.numel() else slot.new_zeros(())
    if mask is None:
        return int(most), "none"
    right = (mask[:, 1:] & ~mask[:, :-1]).any()
    left = (~mask[:, 1:] & mask[:, :-1]).any()
    count, missing, not_right, not_left = torch.stack([most, (~mask).any(), right, left]).tolist()
    return count, "none" if not missing else "right" if not not_right else "left" if not not_left else "mixed"


def _running(x: Tensor) -> Tensor:
    """How many are true before each token of the flat batch, and in all."""
    return torch.cat([x.new_zeros(1, dtype=torch.int64), x.flatten().cumsum(0)])


def _among(running: Tensor, first: Tensor, last: Tensor) -> Tensor:
    return running[last + 1] - running[first]
