"""The GPS layer: a local layer and attention within each graph, side by side."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.conv._inputs import asks_for_batch, knows_members
from graphattn.conv._remembered import remembered
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, patterns
from graphattn.graph.csr import batch_ptr
from graphattn.mechanisms import MECHANISMS, Mechanism
from graphattn.optional import require

require("torch_geometric", extra="pyg", purpose="graphattn.conv")

from torch_geometric.nn.inits import reset  # noqa: E402
from torch_geometric.nn.resolver import activation_resolver, normalization_resolver  # noqa: E402

__all__ = ["GPSConv"]


class GPSConv(nn.Module):
    """A local layer on the edges and a global mechanism on another graph of the same nodes (Rampášek et al., "Recipe
    for a General, Powerful, Scalable Graph Transformer", arXiv 2205.12454, eqs. 2-5).

    .. math::
        x^L = \\mathrm{norm}_1(x + \\mathrm{conv}(x, E)), \\quad x^G = \\mathrm{norm}_2(x + \\mathrm{attn}(x)), \\quad
        x' = \\mathrm{norm}_3\\big(x^L + x^G + \\mathrm{MLP}(x^L + x^G)\\big)

    Arguments, state dict and output are those of :class:`torch_geometric.nn.GPSConv` with ``attn_type="multihead"``;
    but attention runs on a token graph, complete within each graph of the batch, so nothing is padded.

    Args:
        channels: Features of a node, in and out.
        conv: Any local layer, called as ``conv(x, edge_index, **kwargs)``, and with ``batch`` where it takes that;
            ``None``: none.
        heads: Attention heads.
        dropout: On the outputs of both parts and inside the MLP.
        act: Activation of the MLP, as PyG resolves it.
        act_kwargs: Its arguments.
        norm: Normalisation, as PyG resolves it; ``None``: none.
        norm_kwargs: Its arguments.
        attn_type: Name of a mechanism (:func:`graphattn.list_mechanisms`), or a
            :class:`~graphattn.mechanisms.Mechanism` made already.
        attn_kwargs: Arguments of the mechanism, where it is given by name. As in PyG, ``dropout`` is on the attention
            weights (``attention_dropout`` of the mechanism).

    Raises:
        ArgumentError: If there is no such mechanism, or it does not take these arguments.
    """

    def __init__(
        self,
        channels: int,
        conv: nn.Module | None,
        heads: int = 1,
        dropout: float = 0.0,
        act: str = "relu",
        act_kwargs: dict[str, Any] | None = None,
        norm: str | None = "batch_norm",
        norm_kwargs: dict[str, Any] | None = None,
        attn_type: str | Mechanism = "multihead",
        attn_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.conv, self.heads, self.dropout = channels, conv, heads, dropout
        self._conv_with_batch = conv is not None and asks_for_batch(conv)
        self.attn_type = attn_type if isinstance(attn_type, str) else type(attn_type).__name__
        self.attn = _mechanism(attn_type, channels, heads, dict(attn_kwargs or {}))
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels * 2),
            activation_resolver(act, **(act_kwargs or {})),
            nn.Dropout(dropout),
            nn.Linear(channels * 2, channels),
            nn.Dropout(dropout),
        )
        self.norm1, self.norm2, self.norm3 = (
            normalization_resolver(norm, channels, **(norm_kwargs or {})) if norm is not None else None
            for _ in range(3)
        )
        self.norm_with_batch = self.norm1 is not None and "batch" in inspect.signature(self.norm1.forward).parameters

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        for part in (self.conv, self.attn, self.mlp, self.norm1, self.norm2, self.norm3):
            reset(part)

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        batch: Tensor | None = None,
        *,
        attn_graph: TokenGraph | None = None,
        attn_edge: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One layer.

        Args:
            x: ``[N, channels]``.
            edge_index: Whatever the local layer takes.
            batch: int64 ``[N]``, the graph of each node, ascending; ``None``: all nodes are one graph.
            attn_graph: The graph that attention runs on, over the same N nodes; default: complete within each graph of
                ``batch``. Layers that share one should share the object (``patterns.blocks(data.ptr)``): what
                attention builds on it is then built once.
            attn_edge: ``[E', edge_width]`` edge rows of ``attn_graph``, for a mechanism made with ``edge_width``.
            **kwargs: Further arguments of the local layer (``edge_attr``, say).

        Returns:
            ``[N, channels]``.

        Raises:
            ArgumentError: If ``batch`` is not one ascending entry for each node.
        """
        found = []
        if self.conv is not None:
            if self._conv_with_batch and not knows_members(edge_index):
                kwargs["batch"] = batch
            h = F.dropout(self.conv(x, edge_index, **kwargs), self.dropout, self.training)
            found.append(self._normalise(self.norm1, h + x, batch))
        graph = complete_graphs(x, batch) if attn_graph is None else attn_graph
        h = F.dropout(self.attn(x, graph, attn_edge)[0], self.dropout, self.training)
        found.append(self._normalise(self.norm2, h + x, batch))
        out = sum(found[1:], found[0])
        return self._normalise(self.norm3, out + self.mlp(out), batch)

    def _normalise(self, norm: nn.Module | None, rows: Tensor, batch: Tensor | None) -> Tensor:
        if norm is None:
            return rows
        return norm(rows, batch=batch) if self.norm_with_batch else norm(rows)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.channels}, conv={self.conv}, heads={self.heads}, attn_type={self.attn_type})"
        )


def complete_graphs(x: Tensor, batch: Tensor | None) -> TokenGraph:
    """Every node reads every node of its own graph, itself included; made once for the layers that share ``batch``."""
    if batch is None:
        return patterns.complete(x.shape[0], device=x.device)
    if batch.shape != x.shape[:1]:
        raise ArgumentError(f"batch must be [N], the graph of each of {x.shape[0]} nodes, got {list(batch.shape)}")
    return remembered((batch,), ("complete",), lambda: _blocks(batch))


def _blocks(batch: Tensor) -> TokenGraph:
    on_host = not (batch.is_cuda or torch.compiler.is_compiling())
    if on_host and bool((batch.diff() < 0).any()):
        raise ArgumentError("batch must ascend (PyG's batches do); sort the nodes by their graph first")
    return patterns.blocks(batch_ptr(batch), num_tokens=batch.shape[0], validate=on_host)


def _mechanism(kind: Any, channels: int, heads: int, options: dict[str, Any]) -> Mechanism:
    if isinstance(kind, Mechanism):
        if options:
            raise ArgumentError(f"attn_kwargs are for a mechanism given by name, got {options} and a module")
        return kind
    if not isinstance(kind, str):
        raise ArgumentTypeError(f"attn_type must be a name or a Mechanism, got {type(kind).__name__}")
    make = MECHANISMS.get(kind)
    if "dropout" in options:
        options.setdefault("attention_dropout", options.pop("dropout"))
    known = inspect.signature(make).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ArgumentError(f"attn_kwargs must be arguments of {make.__name__}, {list(known)}; got {unknown}")
    return make(channels, heads, **options)
