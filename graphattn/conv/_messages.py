"""Attention inside PyG's ``MessagePassing``: fused, or message by message for whoever wants to see them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from graphattn.attention import attend, edge_weights
from graphattn.conv._pyg import MessagePassing
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import drop_seed

__all__ = ["MessageAttention"]

# Whoever registers one of these wants to see the messages.
_HOOKS = tuple(
    f"_{step}_forward_{when}" for step in ("propagate", "message", "aggregate") for when in ("pre_hooks", "hooks")
)


class MessageAttention(MessagePassing):
    """What all layers of this room inherit: attention as :func:`graphattn.attend` computes it.

    Only an explainer or one of PyG's hooks makes the layer send its messages ``[E, H, C]`` one by one through
    :meth:`propagate`.

    Args:
        dropout: On the attention weights.
        backend: See :func:`graphattn.attend`.
        **kwargs: ``aggr="add"`` and ``flow`` of :class:`torch_geometric.nn.conv.MessagePassing`.
    """

    # What PyG needs to know of the call of `propagate` below.
    propagate_type = {"value": "Tensor", "alpha": "Tensor", "edge_value": "Tensor | None"}

    def __init__(self, *, dropout: float = 0.0, backend: str = "auto", **kwargs: Any) -> None:
        name = type(self).__name__
        aggr = kwargs.setdefault("aggr", "add")
        if aggr not in ("add", "sum"):
            raise ArgumentError(f"aggr must be 'add': {name} sums values with weights that add up to 1; got {aggr!r}")
        if kwargs.get("decomposed_layers", 1) != 1:
            raise ArgumentError(
                f"decomposed_layers must be 1: {name} stores no messages that could be split; "
                f"got {kwargs['decomposed_layers']}"
            )
        if not 0.0 <= dropout < 1.0:
            raise ArgumentError(f"dropout must lie in [0, 1), got {dropout}")
        super().__init__(node_dim=0, **kwargs)
        self.dropout = dropout
        self.backend = backend

    @property
    def _observed(self) -> bool:
        return bool(self.explain) or any(getattr(self, name) for name in _HOOKS)

    def _fuse(
        self, graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Heads ``[N_t, H, C]`` and, where needed, weights ``[E, H]``.

        Args:
            graph: Who reads whom.
            q: ``[N_t, H, D]``.
            k: ``[N_s, H, D]``.
            v: ``[N_s, H, C]``.
            options: Arguments of :func:`graphattn.attend` that shape the score.
            need_weights: Return the weights, too.
        """
        p, seed = drop_seed(self, self.dropout, v)
        out = attend(
            graph,
            q,
            k,
            v,
            dropout_p=p,
            dropout_seed=seed,
            need_weights=need_weights,
            backend=self.backend,
            **options,
        )
        return (out, None) if isinstance(out, Tensor) else (out.out, out.weights)

    def _send(
        self, graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], edge_value: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same through PyG's hooks: every message is a tensor that one can see and mask."""
        alpha = edge_weights(graph, q, k, backend=self.backend, **options)
        return self._show(graph, v, alpha, edge_value), alpha

    def _show(self, graph: TokenGraph, v: Tensor, alpha: Tensor, edge_value: Tensor | None = None) -> Tensor:
        """Heads ``[N_t, H, C]``, summed by PyG with the weights ``alpha [E, H]``."""
        edge_index, size = graph.edge_index, (graph.num_sources, graph.num_targets)
        if self.flow == "target_to_source":
            edge_index, size = edge_index.flip(0), size[::-1]
        kept = F.dropout(alpha, self.dropout, self.training)
        return self.propagate(edge_index, size=size, value=v, alpha=kept, edge_value=edge_value)

    def message(self, value_j: Tensor, alpha: Tensor, edge_value: Tensor | None) -> Tensor:
        """What each edge carries, ``[E, H, C]`` (see :class:`torch_geometric.nn.conv.MessagePassing`)."""
        if edge_value is not None:
            value_j = value_j + edge_value
        return value_j * alpha.unsqueeze(-1)
