"""What GAT and GATv2 have in common as layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.conv._base import AttentionConv
from graphattn.conv._inputs import Edges
from graphattn.conv._pyg import Linear, zeros
from graphattn.conv._self_loops import check_fill_value, edges_with_self_loops

__all__ = ["AdditiveConv"]


class AdditiveConv(AttentionConv):
    """Attention by additive scores, with PyG's self-loops, residual connection and bias.

    Args:
        negative_slope: Of the LeakyReLU.
        add_self_loops: See :func:`~graphattn.conv._self_loops.edges_with_self_loops`.
        fill_value: Edge features of these loops.
        residual: Add the projected features of the node itself.
        **kwargs: Those of :class:`AttentionConv`.
    """

    bias: nn.Parameter | None
    res: Linear | None

    def __init__(
        self,
        *args: Any,
        negative_slope: float,
        add_self_loops: bool,
        fill_value: float | Tensor | str,
        residual: bool,
        **kwargs: Any,
    ) -> None:
        check_fill_value(fill_value)
        super().__init__(*args, **kwargs)
        self.negative_slope = negative_slope
        self.add_self_loops = add_self_loops
        self.fill_value = fill_value
        self.residual = residual

    def _linear(self, in_channels: int, width: int | None = None, bias: bool = False) -> Linear:
        width = self.heads * self.out_channels if width is None else width
        return Linear(in_channels, width, bias=bias, weight_initializer="glorot")

    def _make_rest(self, bias: bool) -> None:
        """Parameters of edges and output, after those of nodes, and all of them drawn: the order of PyG."""
        self.lin_edge = None if self.edge_dim is None else self._linear(self.edge_dim)
        if self.residual:
            self.res = self._linear(self._in_pair[1], self._width)
        else:
            self.register_parameter("res", None)
        self.register_parameter("bias", nn.Parameter(torch.empty(self._width)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        zeros(self.bias)

    def _edges(self, edge_index: Any, edge_attr: Tensor | None, num_sources: int, num_targets: int) -> Edges:
        if not self.add_self_loops:
            return super()._edges(edge_index, edge_attr, num_sources, num_targets)
        return edges_with_self_loops(
            edge_index,
            edge_attr,
            num_sources,
            num_targets,
            self.flow,
            self._edge_width,
            self.fill_value,
            self.backend,
        )

    def _combine(self, out: Tensor, x_target: Tensor | None) -> Tensor:
        if self.res is not None and x_target is not None:
            out = out + self.res(x_target)
        return out if self.bias is None else out + self.bias.to(out.dtype)  # under autocast, no wider than the rest
