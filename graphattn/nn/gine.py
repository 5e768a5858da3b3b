"""The graph isomorphism network with edge rows."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn_kernels import segment_sum, spread

__all__ = ["GINE"]


class GINE(nn.Module):
    """:math:`x'_t = \\mathrm{MLP}\\big(x_t + \\sum_s \\mathrm{ReLU}(x_s + e_{st})\\big)` (Hu et al., "Strategies for
    Pre-training Graph Neural Networks", arXiv 1905.12265): PyG's ``GINEConv`` around two linear layers, by sums without
    atomics, so that the same input gives the same bits.

    Args:
        width: Channels of token and edge rows.
        edges: Whether there are edge rows.
        backend: Of the sparse operations, see :func:`graphattn.edge_weights`.
    """

    def __init__(self, width: int, *, edges: bool = True, backend: str = "auto") -> None:
        super().__init__()
        self.edges, self.backend = edges, backend
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """New rows of ``x [N, width]`` from edge rows ``[E, width]``; the second result is ``None``."""
        if (edge is not None) != self.edges:
            needed = f"[{graph.num_edges}, {x.shape[-1]}]" if self.edges else "None"
            raise ArgumentError(f"edge must be {needed}, got {None if edge is None else list(edge.shape)}")
        structure = graph.structure
        message = spread(structure.T, x, backend=self.backend)
        if edge is not None:
            message = message + edge
        return self.mlp(x + segment_sum(structure, message.relu(), backend=self.backend)), None
