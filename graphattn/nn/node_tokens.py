"""Rows of tokens that stand for nodes of a graph: their features, projected into the embedding of a language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError

__all__ = ["NodeTokens"]


class NodeTokens(nn.Module):
    """Replaces the embedding of node tokens by a linear map of their feature rows.

    (Guan et al., arXiv 2505.02130, write the rows of an embedding of the language model's width into its table, one
    vocabulary entry for each node; one placeholder and a projection serve features of any width.)

    Args:
        features: Float ``[N, F]``, kept on the module's device and out of its state dict.
        width: Channels of a token row.
        scale: Initial deviation of a projected row of unit length, per channel; 0.02 as in most language models.
    """

    features: Tensor

    def __init__(self, features: Tensor, width: int, scale: float = 0.02) -> None:
        super().__init__()
        if features.dim() != 2:
            raise ArgumentError(f"features must be [N, F], got {list(features.shape)}")
        self.register_buffer("features", features, persistent=False)
        self.projection = nn.Linear(features.shape[1], width)
        nn.init.normal_(self.projection.weight, std=scale)
        nn.init.zeros_(self.projection.bias)

    def forward(self, rows: Tensor, node_ids: Tensor) -> Tensor:
        """Token rows with the nodes' in their places.

        Args:
            rows: ``[..., T, width]`` embedded tokens.
            node_ids: int64 ``[..., T]``: the node of each token, -1 for words.
        """
        node = node_ids.clamp(min=0)
        if self.features.shape[0] <= node_ids.numel():
            found = self.projection(self.features)[node]
        else:
            found = self.projection(self.features[node])
        return torch.where((node_ids >= 0).unsqueeze(-1), found.to(rows.dtype), rows)
