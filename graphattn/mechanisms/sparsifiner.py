"""Sparsifiner: attention on a graph that a cheap predictor picks for each image, head and layer (Wei, Duke, Jiang,
Aarabi, Taylor, Shkurti, "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers",
CVPR 2023, arXiv 2303.13755)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.attention import attend
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, patterns
from graphattn.graph.subsample import count_kept
from graphattn.mechanisms.base import (
    Mechanism,
    Transform,
    check_copies,
    check_edge,
    check_rows,
    drop_seed,
    head_width,
)
from graphattn.mechanisms.parts.connectivity_predictor import ConnectivityPredictor
from graphattn.mechanisms.parts.fixed_scores import random_scores, window_scores
from graphattn.mechanisms.parts.learned_choice import LearnedChoice, check_budget, is_complete, products
from graphattn_kernels.block_scores import block_means, block_scores

__all__ = ["Sparsifiner"]

Selector = Literal["predictor", "oracle", "random", "window"]
SELECTORS = ("predictor", "oracle", "random", "window")


class Sparsifiner(Mechanism, LearnedChoice):
    """Scaled dot product and softmax over the best candidates of each token, as a low-rank predictor ranks them.

    .. math::
        M_t = \\operatorname{top}_b \\big(\\tilde A_t\\big), \\qquad
        x'_t = O \\Big[\\sum_{s \\in M_t} \\operatorname{softmax}_{s \\in M_t}
        \\Big(\\frac{q_t^\\top k_s}{\\sqrt{d}}\\Big) v_s\\Big]

    with :math:`\\tilde A = U B` of :class:`~graphattn.mechanisms.parts.connectivity_predictor.ConnectivityPredictor`,
    for each head and each member of a batch. What is kept is scored anew, by full queries and keys. Candidates are the
    edges of the given graph: all pairs for the published form, and the edges of any graph for a learned edge sampler.
    No gradient goes through the choice: the predictor learns from
    :func:`~graphattn.mechanisms.reconstruction.reconstruct` (stage 1 of :class:`graphattn.training.Sparsification`),
    and before that chooses at random, more or less.

    The predictor knows landmarks, sums over all tokens, so that what a token reads depends on every other: on a causal
    graph, the future decides what the past reads. It is refused where the graph is known to be causal
    (:attr:`~graphattn.TokenGraph.known_causal`; a plain list of edges says nothing of it, and is taken). Other
    selectors look at the candidates of each token alone.

    Parameters outside of ``predictor`` have the names of :class:`torch.nn.MultiheadAttention`, so those of a trained
    network load with ``strict=False``.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        edge_width: Channels of an edge row, which adds one number for each head to the score (not to the choice);
            ``None``: no edge rows, as ``select="block"`` needs.
        keep: The share of its candidates that a token reads, rounded up to b of them.
        keys: b itself, instead of ``keep``.
        threshold: Keep the candidates with :math:`\\tilde A` above this instead (released code: 1e-4).
        select: ``"query"``: each token has keys of its own, as published. ``"block"``: ``block`` tokens in a row share
            the keys that are best for their mean: the form that tensor cores make fast. Complete graphs only.
        block: Tokens of a block.
        selector: What ranks candidates. ``"predictor"``; or, to compare with, at the same degree: ``"oracle"`` (true
            attention), ``"random"`` (drawn once for each layer and head) or ``"window"`` (the nearest in an image, and
            the prefix).
        num_tokens: See :class:`ConnectivityPredictor`; ``None``: any number of tokens.
        prefix_tokens: First so many tokens (class token, registers), of each member, read all candidates, as published.
        grid_size: Patches after the prefix, for ``selector="window"``.
        keep_self: A token reads itself, besides what was chosen (published: not forced). With ``select="block"``, the
            tokens of a block are the first of its keys, which are ``block`` at least.
        predictor: Further arguments of :class:`ConnectivityPredictor`: ``{"rank": 32}``.
        parity: The predictor of the released code.
        bias: Give the projections a bias.
        dropout: On the concatenated heads before the output projection.
        attention_dropout: On the attention weights.
        backend: See :func:`graphattn.attend`.

    Raises:
        ArgumentError: If the arguments contradict each other.
    """

    takes_transform = True

    def __init__(
        self,
        width: int,
        heads: int,
        edge_width: int | None = None,
        *,
        keep: float = 0.25,
        keys: int | None = None,
        threshold: float | None = None,
        select: Literal["query", "block"] = "query",
        block: int = 64,
        selector: Selector = "predictor",
        num_tokens: int | None = None,
        prefix_tokens: int = 0,
        grid_size: tuple[int, int] | None = None,
        keep_self: bool = False,
        predictor: dict[str, Any] | None = None,
        parity: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        check_budget(keep, keys)
        _check(select, block, selector, threshold, prefix_tokens, grid_size, edge_width)
        self.complete_only = select == "block"
        self.width, self.heads, self.head_width = width, heads, head_width(width, heads)
        self.keep, self.keys, self.threshold, self.select, self.block = keep, keys, threshold, select, block
        self.selector, self.prefix_tokens, self.grid_size = selector, prefix_tokens, grid_size
        self.keep_self, self.attention_dropout, self.backend = keep_self, attention_dropout, backend
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width)) if bias else None
        self.out_proj = nn.Linear(width, width, bias=bias)
        self.edge = nn.Linear(edge_width, heads, bias=False) if edge_width else None
        self.dropout = nn.Dropout(dropout)
        self.predictor: ConnectivityPredictor | None = None
        if selector == "predictor":
            options = {"num_tokens": num_tokens, "parity": parity, **(predictor or {})}
            self.predictor = ConnectivityPredictor(self.head_width, heads, **options)
        if selector == "random":
            self.register_buffer("seed", torch.randint(2**31, ()))
        self._fixed: dict[tuple[int, torch.device], TokenGraph] = {}
        self._draw_in_projection()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        self.out_proj.reset_parameters()
        for part in (self.edge, self.predictor):
            if part is not None:
                part.reset_parameters()
        self._draw_in_projection()

    def _load_from_state_dict(self, *args: Any) -> None:
        self._fixed.clear()  # drawn from another seed
        super()._load_from_state_dict(*args)

    def forward(
        self,
        x: Tensor,
        graph: TokenGraph,
        edge: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        transform: Transform | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Mechanism.forward`; the second result is ``None``.

        Args:
            x: ``[..., N, width]``.
            graph: Candidates; square, and for ``x`` ``[B, N, width]`` perhaps with a leading dimension ``[B]``.
            edge: ``[E, edge_width]``.
            tokens: int64 ``[..., N]``: which of ``num_tokens`` each row is, where tokens were pruned.
            transform: See :class:`Mechanism`. It may not bring earlier tokens along.

        Raises:
            ArgumentError: If shapes do not fit, or the graph is causal and there is a predictor.
        """
        check_rows(x, graph, self.width, transform)
        if not graph.is_square:
            raise ArgumentError(f"graph must be square, keys and values of earlier tokens cannot be kept; got {graph}")
        check_copies(x, graph)
        check_edge(edge, self.edge)
        if edge is not None and edge.shape[:-1] != (graph.num_edges,):
            raise ArgumentError(f"edge must be [{graph.num_edges}, {edge.shape[-1]}], got {list(edge.shape)}")
        if self.predictor is not None and graph.known_causal:
            raise ArgumentError(
                "graph must not be causal with selector='predictor': its landmarks are sums over all tokens, so the "
                "future would decide what the past reads; take selector='oracle', 'window' or 'random'"
            )
        leading = x.shape[:-2]
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_width)).unbind(-3)
        if transform is not None:
            q, k, v = transform(q, k, v)
        if len(leading) > 1:
            q, k, v = (rows.flatten(0, -4) for rows in (q, k, v))
            tokens = None if tokens is None else tokens.flatten(0, -2)
        self.look(graph, q, k, tokens)
        bias = None if self.edge is None or edge is None else self.edge(edge)
        out = self._attend(graph, q, k, v, bias, tokens)
        out = self.out_proj(self.dropout(out.flatten(-2)))
        return out.unflatten(0, leading) if len(leading) > 1 else out, None

    def _attend(
        self, graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, tokens: Tensor | None
    ) -> Tensor:
        p, seed = drop_seed(self, self.attention_dropout, v)
        options: dict[str, Any] = {"dropout_p": p, "dropout_seed": seed, "backend": self.backend}
        prefix = self.prefix_tokens
        if self.dense or graph.num_tokens <= prefix:  # nobody is left who would choose
            return attend(graph, q, k, v, edge_bias=bias, **options)  # type: ignore[return-value]
        if self.select == "block" and is_complete(graph):
            lists = self.choose(graph, q, k, tokens=tokens)
            out = attend(lists, q[..., prefix:, :, :], k, v, **options)
            if not prefix:
                return out  # type: ignore[return-value]
            every = patterns.complete(prefix, graph.num_tokens, device=graph.device)
            first = attend(every, q[..., :prefix, :, :], k, v, **options)
            return torch.cat([first, out], -3)  # type: ignore[list-item]
        if bias is None and not graph.leading:
            return attend(self.choose(graph, q, k, tokens=tokens), q, k, v, **options)  # type: ignore[return-value]
        chosen, numbers = self.among_edges(graph, self.edge_ranking(graph, q, k, tokens))
        if bias is not None:  # every edge of every copy has its head's number
            copies = chosen.num_copies // self.heads
            options["edge_bias"] = bias.T.expand(copies, -1, -1).reshape(-1)[numbers]
        if not graph.leading:
            return attend(chosen, q, k, v, **options)  # type: ignore[return-value]
        out = attend(chosen, *(rows.flatten(0, 1) for rows in (q, k, v)), **options)
        return out.unflatten(0, (graph.leading[0], graph.num_tokens))  # type: ignore[union-attr]

    # --- the choice -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(self, graph: TokenGraph, q: Tensor, k: Tensor, *, tokens: Tensor | None = None) -> TokenGraph:
        """The graph that attention is computed on, without gradient.

        Args:
            graph: Candidates.
            q: ``[B, N, H, D]`` or ``[N, H, D]``.
            k: The same.
            tokens: See :meth:`forward`.

        Returns:
            A graph for each head and batch entry (for each head alone, where no input decides, and where the candidates
            are of one batch entry each: then over the tokens of all of them). With ``select="block"``, lists of keys
            for the tokens after the prefix.
        """
        if is_complete(graph) and graph.num_tokens <= self.prefix_tokens:
            targets = 0 if self.select == "block" else graph.num_tokens
            return patterns.complete(targets, graph.num_tokens, device=graph.device)
        if not is_complete(graph):
            if self.select == "block":
                raise ArgumentError("select='block' needs the complete graph, on others take select='query'")
            return self.among_edges(graph, self.edge_ranking(graph, q, k, tokens))[0]
        if self.selector in ("random", "window"):
            return self._fixed_graph(graph)
        if self.predictor is not None:
            q, k = self.predictor(q, k, graph, tokens=tokens, select=True)
        axes = "bh" if q.dim() == 4 else "h"
        if self.select == "block":
            q, k = (rows if rows.dim() == 4 else rows.unsqueeze(0) for rows in (q, k))
            scores = block_scores(q[:, self.prefix_tokens :], k, self.block)
            return self._best(scores if axes == "bh" else scores.squeeze(0), axes)
        with torch.autocast(q.device.type, enabled=False):
            wide = torch.promote_types(q.dtype, torch.float32)
            return self._best(q.movedim(-2, -3).to(wide) @ k.movedim(-2, -3).to(wide).mT, axes)

    def _best(self, scores: Tensor, axes: str) -> TokenGraph:
        """The choice by scores of all pairs, ``[..., T, S]``, or of all blocks and sources."""
        device, sources = scores.device, scores.shape[-1]
        budget = count_kept(sources, self.keep) if self.keys is None else min(sources, self.keys)
        if self.select == "block":
            targets = sources - self.prefix_tokens
            if self.keep_self:  # a block's own tokens, the first of all: its keys are no fewer
                budget = max(budget, min(self.block, targets))
                own = torch.arange(targets, device=device)
                scores = scores.clone()
                scores[..., own // self.block, own + self.prefix_tokens] = math.inf
            return TokenGraph.top_k(scores, budget, block=self.block, num_targets=targets, axes=axes)
        full = torch.arange(sources, device=device) < self.prefix_tokens if self.prefix_tokens else None
        options: dict[str, Any] = {"axes": axes, "full_rows": full, "keep_self": self.keep_self}
        if self.threshold is not None:
            return TokenGraph.threshold(scores, self.threshold, **options)
        return TokenGraph.top_k(scores, budget, **options)

    @torch.no_grad()
    def edge_ranking(self, graph: TokenGraph, q: Tensor, k: Tensor, tokens: Tensor | None) -> Tensor:
        """What ranks the candidates, ``[..., E, H]``."""
        if self.selector in ("random", "window"):
            source, target = graph.edge_index % max(graph.num_tokens, 1)  # of each copy
            found = self._fixed_scores(graph.num_tokens).to(graph.device)[..., target, source]
            shared = () if graph.leading else q.shape[:-3]
            return found.expand(*shared, self.heads, -1).movedim(-2, -1)
        if self.predictor is not None:
            q, k = self.predictor(q, k, graph, tokens=tokens, select=True)
        return products(graph, q, k)

    def _fixed_scores(self, tokens: int) -> Tensor:
        if self.selector == "random":
            return random_scores(self.heads, tokens, int(self.get_buffer("seed")))
        assert self.grid_size is not None
        scores = window_scores(self.grid_size, self.prefix_tokens)
        if scores.shape[0] != tokens:
            raise ArgumentError(f"grid_size {self.grid_size} and the prefix are {scores.shape[0]} tokens, got {tokens}")
        return scores.expand(self.heads, -1, -1)

    def _fixed_graph(self, graph: TokenGraph) -> TokenGraph:
        key = graph.num_tokens, graph.device
        if key not in self._fixed:
            scores = self._fixed_scores(graph.num_tokens).to(graph.device)
            if self.select == "block":
                scores = block_means(scores[:, self.prefix_tokens :], self.block)
            self._fixed[key] = self._best(scores, "h")
        return self._fixed[key]

    def _draw_in_projection(self) -> None:
        # As torch.nn.MultiheadAttention, like the multihead mechanism, whose parameters these are.
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        budget = "threshold" if self.threshold is not None else "keys" if self.keys is not None else "keep"
        return (
            f"width={self.width}, heads={self.heads}, {budget}={getattr(self, budget)}, select={self.select!r}, "
            f"selector={self.selector!r}"
        )


def _check(
    select: str,
    block: int,
    selector: str,
    threshold: float | None,
    prefix: int,
    grid: tuple[int, int] | None,
    edge_width: int | None,
) -> None:
    if select not in ("query", "block"):
        raise ArgumentError(f"select must be 'query' or 'block', got {select!r}")
    if block < 1 or prefix < 0:
        raise ArgumentError(f"block must be positive and prefix_tokens not negative, got {block} and {prefix}")
    if selector not in SELECTORS:
        raise ArgumentError(f"selector must be one of {SELECTORS}, got {selector!r}")
    if threshold is not None and select == "block":
        raise ArgumentError("threshold and select='block' do not go together: lists of keys have one length")
    if edge_width and select == "block":
        raise ArgumentError(f"edge_width must be None with select='block', whose keys are no edges; got {edge_width}")
    if selector == "window" and grid is None:
        raise ArgumentError("selector='window' needs grid_size, the rows and columns of patches")
