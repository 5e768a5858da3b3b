"""Networks for sequences: the causal language model with any mechanism on any graph of its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import GraphWindowAttention, InfSA, Mechanism
from graphattn.mechanisms.parts.learned_choice import LearnedChoice
from graphattn.models._sequence_graph import GraphRule, check_tokens, next_tokens, positions_of, token_graph
from graphattn.models.generation import HeadTransform, KeyValueCache, generate
from graphattn.models.parts import checkpointed, make_mechanism
from graphattn.nn import PreNormBlock, Rotary, make_norm
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["CausalTransformer"]

POSITIONS = ("rope", "learned", "none")
NORMS = ("rms", "layer")


class CausalTransformer(nn.Module):
    """A decoder-only transformer (Radford et al., 2019, with the norm before each half) whose attention is any
    mechanism of the library and whose tokens are any token graph.

    Positions are rotary by default: queries and keys are turned inside the mechanism, through its ``transform=``. A
    mechanism that compares no queries with keys has none, and needs ``positions="learned"``. Sparsifiner's predictor is
    refused: its landmarks are sums over all tokens, so that the future would decide what the past reads. Its other
    selectors are taken.

    A batch is ``[B, N]`` with one graph for all; sequences of different lengths are one row ``[N]`` with ``ptr``, or
    padded on either side, with ``mask``. Nothing that a mask leaves out is computed or read.

    Args:
        vocab: Different tokens.
        width: Channels of a token row.
        heads: Attention heads.
        layers: Blocks.
        mlp_ratio: Hidden channels of the feed-forward networks as a multiple of ``width``.
        attention: A name of :func:`graphattn.list_mechanisms` (``"softmax"`` is ``"multihead"``), or a function that
            makes a mechanism for each block from ``(width, heads, edge_width)``.
        attention_options: Further arguments of a mechanism given by name.
        edge_width: Channels of edge rows, which every block reads; ``None``: none.
        graph: Who reads whom where a call does not say: ``"causal"``, or a function of the number of tokens. Where
            its answer for a token changes with the number of later ones, give ``use_cache=False`` to :meth:`generate`:
            what was kept would stay as it was read.
        positions: ``"rope"``, ``"learned"`` or ``"none"``.
        context: Largest number of tokens, which learned positions need.
        rope_base: Base of the rotary angles.
        norm: ``"rms"`` or ``"layer"``.
        dropout: In mechanisms (before their output projection) and feed-forward networks.
        input_dropout: On the embedded input.
        attention_dropout: On attention weights, for mechanisms that take it.
        tie_weights: The last map is the embedding transposed.
        backend: See :func:`graphattn.attend`.

    Raises:
        ArgumentError: If the arguments contradict each other, or a mechanism would read the future.
    """

    def __init__(
        self,
        vocab: int,
        width: int = 256,
        heads: int = 4,
        layers: int = 4,
        mlp_ratio: float = 4.0,
        *,
        attention: str | Callable[[int, int, int | None], Mechanism] = "softmax",
        attention_options: Mapping[str, Any] | None = None,
        edge_width: int | None = None,
        graph: GraphRule = "causal",
        positions: str = "rope",
        context: int | None = None,
        rope_base: float = 10000.0,
        norm: str = "rms",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        tie_weights: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ArgumentError(f"positions must be one of {POSITIONS}, got {positions!r}")
        if norm not in NORMS:
            raise ArgumentError(f"norm must be one of {NORMS}, got {norm!r}")
        if positions == "learned" and context is None:
            raise ArgumentError("positions='learned' needs context, the largest number of tokens")
        self.vocab, self.width, self.heads, self.context = vocab, width, heads, context
        self.graph_rule, self.edge_width, self.grad_checkpointing = graph, edge_width, False
        self.embed = nn.Embedding(vocab, width)
        self.position = nn.Embedding(context, width) if positions == "learned" and context is not None else None
        self.rotary = Rotary(width // heads, rope_base) if positions == "rope" else None
        self.input_dropout = nn.Dropout(input_dropout)
        shared = {"dropout": dropout, "attention_dropout": attention_dropout, "backend": backend}

        def make() -> Mechanism:
            if not isinstance(attention, str):
                return attention(width, heads, edge_width)
            name = "multihead" if attention == "softmax" else attention
            options = {"edge_output": False, "shared": shared, **(attention_options or {})}
            return make_mechanism(name, width, heads, edge_width, **options)

        self.blocks = nn.ModuleList(
            PreNormBlock(make(), width, mlp_ratio=mlp_ratio, dropout=dropout, norm=norm) for _ in range(layers)
        )
        self.norm = make_norm(norm, width)
        self.head = nn.Linear(width, vocab, bias=False)
        self._tied = tie_weights
        self._check_mechanisms()
        self._draw()

    # --- the network --------------------------------------------------------------------------------------

    def forward(self, tokens: Tensor | None = None, **inputs: Any) -> Tensor:
        """Scores of the next token, ``[..., N, vocab]``; arguments as :meth:`features`."""
        return self.head(self.features(tokens, **inputs))

    def features(
        self,
        tokens: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        graph: TokenGraph | None = None,
        positions: Tensor | None = None,
        ptr: Tensor | None = None,
        mask: Tensor | None = None,
        edge: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Token rows ``[..., N, width]`` after the last norm.

        Args:
            tokens: int64 ``[B, N]`` or ``[N]``.
            inputs_embeds: Their rows ``[..., N, width]`` instead, some of which may be embedded otherwise (nodes of a
                graph, say; :attr:`embed` makes those of tokens).
            graph: Who reads whom; default: the model's. With a cache: the new tokens are its targets, those kept and
                then the new ones its sources.
            positions: ``[N]`` or ``[..., N]``; default: 0, 1, ... from the first token of each sequence (after those
                kept).
            ptr: ``[B + 1]`` first token of each of several sequences in one row of tokens. Not with ``graph``.
            mask: bool ``[B, N]``: the tokens that are there; others are padding, left or right, and get rows of 0.
                Not with ``graph``. With a cache it is of all tokens, ``[B, S]``.
            edge: ``[E, edge_width]`` edge rows.
            cache: Keys and values of earlier tokens; those of the new ones are added to it.

        Raises:
            ArgumentError: If shapes do not fit, or arguments contradict each other.
        """
        x = self._rows(tokens, inputs_embeds)
        check_tokens(x, graph, ptr, mask, None if cache is None else cache.length)
        if mask is not None and cache is None:  # without padding, as one row
            sizes = mask.sum(-1)
            packed = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
            given = None if positions is None else positions.expand(mask.shape)[mask]
            found = self._run(x[mask], None, given, packed, None, edge, None)
            return found.new_zeros(x.shape).masked_scatter(mask.unsqueeze(-1), found)
        return self._run(x, graph, positions, ptr, mask, edge, cache)

    def loss(self, tokens: Tensor, targets: Tensor | None = None, *, reduction: str = "mean", **inputs: Any) -> Tensor:
        """Mean cross-entropy of the next token, in nats.

        Args:
            tokens: int64 ``[B, N]`` or ``[N]``.
            targets: int64 of the same shape, -100 where there is none; default: the token after each, within its
                sequence.
            reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``[..., N]``).
            **inputs: See :meth:`features`.
        """
        logits = self.forward(tokens, **inputs)
        if targets is None:
            targets = next_tokens(tokens, inputs.get("ptr"), inputs.get("mask"))
        loss = F.cross_entropy(
            logits.flatten(0, -2).to(accumulate_dtype(logits.dtype)), targets.flatten().long(), reduction=reduction
        )
        return loss.reshape(targets.shape) if reduction == "none" else loss

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        """Continue texts, token after token: see :func:`graphattn.models.generation.generate`."""
        return generate(self, tokens, max_new_tokens, temperature, top_k, generator, **options)

    @property
    def can_cache(self) -> bool:
        """Whether keys and values of earlier tokens can be kept, instead of computing all of a text again."""
        if self.graph_rule != "causal" and any(
            isinstance(part, GraphWindowAttention) for part in self.blocks.modules()
        ):
            return False  # the window is of walks, through tokens that are no longer there
        return all(block.attn.takes_transform and block.attn.reads_row_by_row for block in self.blocks)  # type: ignore[union-attr]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block again in the backward pass instead of keeping what is inside."""
        self.grad_checkpointing = enable

    # --- helpers ------------------------------------------------------------------------------------------

    def _rows(self, tokens: Tensor | None, given: Tensor | None) -> Tensor:
        if (tokens is None) == (given is None):
            raise ArgumentError("give either tokens or inputs_embeds")
        if given is not None:
            return given
        assert tokens is not None
        if tokens.dtype not in (torch.int64, torch.int32):
            raise ArgumentTypeError(f"tokens must be integers, got {tokens.dtype}")
        return self.embed(tokens)

    def _run(
        self,
        x: Tensor,
        graph: TokenGraph | None,
        positions: Tensor | None,
        ptr: Tensor | None,
        mask: Tensor | None,
        edge: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        past = 0 if cache is None else cache.length
        plain = positions is ptr is mask is None
        if positions is None:
            positions = positions_of(x, past, ptr, mask)
        if self.position is not None and (plain or not (x.is_cuda or torch.compiler.is_compiling())):
            count = past + x.shape[-2] if plain else int(positions.max()) + 1 if positions.numel() else 0
            if count > self.position.num_embeddings:
                raise ArgumentError(
                    f"learned positions are for {self.position.num_embeddings} tokens (context), got {count}"
                )
        if graph is None:
            graph = token_graph(self.graph_rule, x, past, ptr, mask)
        if self.position is not None:
            x = x + self.position(positions)
        x = self.input_dropout(x)
        waves = None
        if self.rotary is not None:
            exact = torch.float64 if x.dtype == torch.float64 else torch.float32
            waves = self.rotary(positions, exact)
        for layer, block in enumerate(self.blocks):
            options: dict[str, Any] = {}
            if waves is not None or cache is not None:
                options["transform"] = HeadTransform(waves, cache, layer)
            if self.grad_checkpointing and cache is None and torch.is_grad_enabled():  # what is kept is kept once
                x = checkpointed(block, x, graph, edge, **options)
            else:
                x = block(x, graph, edge, **options)
        return self.norm(x)

    def _check_mechanisms(self) -> None:
        if any(isinstance(part, LearnedChoice) and part.predictor is not None for part in self.blocks.modules()):
            raise ArgumentError(
                "selector must be 'oracle', 'window' or 'random' in a causal network, got 'predictor': Sparsifiner's "
                "landmarks are sums over all tokens, so the future would decide what the past reads"
            )
        if any(isinstance(part, InfSA) for part in self.blocks.modules()):
            raise ArgumentError(
                "attention must not be InfSA in a causal network: its norm is over all edges, so the future "
                "would scale the past; use 'linear_infsa', whose causal form reads the past alone"
            )
        if self.rotary is None:
            return
        for block in self.blocks:
            if not block.attn.takes_transform:  # type: ignore[union-attr]
                raise ArgumentError(
                    f"positions='rope' needs a mechanism that compares queries with keys, {type(block.attn).__name__} "
                    "does not; use positions='learned'"
                )

    def _draw(self) -> None:
        """Initial values of GPT-2 (deviation 0.02, less where residual paths end); mechanisms keep their own."""
        nn.init.normal_(self.embed.weight, std=0.02)
        if self.position is not None:
            nn.init.normal_(self.position.weight, std=0.02)
        for block in self.blocks:
            mlp: Any = block.mlp
            nn.init.normal_(mlp.inner.weight, std=0.02)
            nn.init.normal_(mlp.outer.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))
            nn.init.zeros_(mlp.inner.bias)
            nn.init.zeros_(mlp.outer.bias)
        nn.init.normal_(self.head.weight, std=0.02)
        if self._tied:
            self.head.weight = self.embed.weight

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"vocab={self.vocab}, width={self.width}, heads={self.heads}, tie_weights={self._tied}"
