"""The published networks, and their attention by other means with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.benchmarks.batches import Batch
from graphattn.graph import TokenGraph
from graphattn.mechanisms.graph_transformer import GraphTransformerAttention
from graphattn.models import graph as models

__all__ = ["NETWORKS", "Network", "Other", "Padded", "PaddedSdpa", "PygOps"]


class Other(nn.Module):
    """Attention by other means with the parameters of a GraphTransformerAttention; ``batch`` is set before a step."""

    def __init__(self, ours: GraphTransformerAttention) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = ours.query, ours.key, ours.value, ours.out
        self.edge, self.edge_out = ours.edge, ours.edge_out
        self.heads, self.scale, self.clamp = ours.heads, ours.head_width**-0.5, ours.clamp
        self.prepared: Any = None

    @staticmethod
    def prepare(batch: Batch) -> Any:
        """What all layers share of a batch, made once a step."""
        raise NotImplementedError

    def heads_of(self, x: Tensor) -> Tensor:
        """``[N, width]`` to ``[N, H, D]``."""
        return x.unflatten(-1, (self.heads, -1))


class Padded(Other):
    """Every graph padded to the longest; dense scores, a boolean mask, softmax."""

    @staticmethod
    def prepare(batch: Batch) -> Any:
        """Place of each token, and the mask ``[B, 1, L, L]``."""
        length, member = -(-batch.longest // 8) * 8, batch.member
        inside = torch.arange(batch.x.shape[0], device=member.device) - batch.ptr[member]
        source, target = batch.edge_index
        mask = torch.zeros(batch.num_graphs, 1, length, length, dtype=torch.bool, device=member.device)
        mask[member[target], 0, inside[target], inside[source]] = True
        return member * length + inside, mask

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``[B, H, L, D]`` each."""
        scores = q @ k.transpose(-1, -2) * self.scale
        if self.clamp is not None:
            scores = scores.clamp(-self.clamp, self.clamp)
        # Not -inf: a padded token, or one without neighbours, has no entry and must stay finite.
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return weights.to(v.dtype) @ v

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, None]:
        """As GraphTransformerAttention."""
        place, mask = self.prepared
        batch, length = mask.shape[0], mask.shape[-1]

        def pad(rows: Tensor) -> Tensor:
            room = rows.new_zeros(batch * length, rows.shape[-1]).index_copy(0, place, rows)
            return self.heads_of(room.view(batch, length, -1)).transpose(1, 2)

        out = self.attention(*(pad(project(x)) for project in (self.query, self.key, self.value)), mask)
        return self.out(out.transpose(1, 2).reshape(batch * length, -1).index_select(0, place)), None


class PaddedSdpa(Padded):
    """The same with PyTorch's fused attention, which cannot clamp a score: a little less work than the network asks."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``[B, H, L, D]`` each."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)


class PygOps(Other):
    """Gather, PyG's softmax and scatter: a message passing layer as one writes it with PyG."""

    @staticmethod
    def prepare(batch: Batch) -> Any:
        """The edges as they are."""
        return batch.edge_index, batch.x.shape[0]

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As GraphTransformerAttention."""
        from torch_geometric.utils import scatter, softmax

        (source, target), n = self.prepared
        q, k, v = (self.heads_of(project(x)) for project in (self.query, self.key, self.value))
        product = q[target] * k[source] * self.scale
        if edge is not None:
            assert self.edge is not None
            product = product * self.heads_of(self.edge(edge))
        scores = product.sum(-1)
        if self.clamp is not None:
            scores = scores.clamp(-self.clamp, self.clamp)
        weights = softmax(scores, target, num_nodes=n)
        out = scatter(weights.unsqueeze(-1).to(v.dtype) * v[source], target, dim=0, dim_size=n, reduce="sum")
        edge_step = None if self.edge_out is None else self.edge_out(product.flatten(1))
        return self.out(out.flatten(1)), edge_step


class Network(NamedTuple):
    """A published network and whom it is compared with."""

    make: Callable[..., nn.Module]
    classes: int | None
    """``None``: regression of one number a graph."""
    others: dict[str, type[Other]]
    autocast: torch.dtype | None
    goal: float
    """The least ratio that is promised: an epoch of the first of the others over one of ours."""


NETWORKS: dict[str, Network] = {
    "pattern": Network(
        models.graph_transformer_pattern, 2, {"padded dense": Padded, "padded SDPA": PaddedSdpa}, torch.bfloat16, 2.0
    ),
    "cluster": Network(
        models.graph_transformer_cluster, 6, {"padded dense": Padded, "padded SDPA": PaddedSdpa}, torch.bfloat16, 2.0
    ),
    "zinc": Network(models.graph_transformer_zinc, None, {"PyG's operations": PygOps}, None, 3.0),
}
