"""A small causal transformer that reads words and nodes, on the windows of a prompt."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from graphattn import TokenGraph
from graphattn.graph import patterns
from graphattn.models.sequence import CausalTransformer

__all__ = ["WINDOWS", "PromptNetwork", "WindowChoice"]


class WindowChoice(NamedTuple):
    """A Global Linkage Horizon and its direction."""

    hops: int
    direction: str

    @property
    def name(self) -> str:
        """As in tables: ``"uni-2"``."""
        return f"{self.direction}-{self.hops}"


_EVERY = [WindowChoice(hops, direction) for direction in ("uni", "bidi") for hops in (1, 2, 3, 4)]
WINDOWS: dict[str, WindowChoice] = {window.name: window for window in _EVERY}
"""All windows of trees of two hops, of which ``"uni-4"`` is plain causal attention."""


class PromptNetwork(nn.Module):
    """A :class:`~graphattn.models.sequence.CausalTransformer` whose node tokens are projected feature rows.

    Args:
        vocab: Words.
        features: ``[N, F]`` of all nodes of the graph; kept, not trained.
        width: Channels.
        heads: Heads.
        layers: Blocks.
        dropout: On the input, in mechanisms and in feed-forward networks.
        feature_dropout: On feature rows.
    """

    def __init__(
        self,
        vocab: int,
        features: Tensor,
        *,
        width: int = 128,
        heads: int = 4,
        layers: int = 4,
        dropout: float = 0.0,
        feature_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.features: Tensor
        self.project = nn.Sequential(
            nn.Dropout(feature_dropout), nn.Linear(features.shape[1], width), nn.RMSNorm(width, eps=1e-6)
        )
        self.transformer = CausalTransformer(vocab, width, heads, layers, dropout=dropout)
        # Rows of words are of deviation 0.02, and become as large as others in the first norm; so do those of nodes.
        self.size = 0.02

    def forward(self, prompts: dict[str, Tensor], window: WindowChoice, depth: int) -> Tensor:
        """Scores of the first word of the answer, ``[B, vocab]``.

        Args:
            prompts: See :class:`~graphattn_datasets.text_graphs.PromptWriter`.
            window: Who reads whom.
            depth: Hops of the trees.
        """
        inputs = self.transformer.embed(prompts["tokens"])
        node = prompts["node_ids"]
        at = node.clamp(min=0)
        few = node.numel() < len(self.features)  # then only their rows are projected
        rows = self.project(self.features[at]) if few else self.project(self.features)[at]
        inputs = torch.where((node >= 0).unsqueeze(-1), (rows * self.size).to(inputs.dtype), inputs)
        found = self.transformer.features(
            inputs_embeds=inputs, graph=self.graph(prompts, window, depth), positions=self._positions(prompts)
        )
        at = prompts["answer_at"]
        return self.transformer.head(found[torch.arange(len(at), device=at.device), at])

    @staticmethod
    def graph(prompts: dict[str, Tensor], window: WindowChoice, depth: int) -> TokenGraph:
        """The graph of prompts that are padded on the right; nothing is waited for."""
        return patterns.graph_window(
            prompts["node_of_token"],
            prompts["parents"],
            window.hops,
            window.direction,  # type: ignore[arg-type]
            mask=prompts["attention_mask"],
            depth=depth,
            node_tokens=prompts["parents"].shape[1],
            padding="right",
        )

    @staticmethod
    def _positions(prompts: dict[str, Tensor]) -> Tensor:
        return torch.arange(prompts["tokens"].shape[1], device=prompts["tokens"].device)
