"""Projected edge features as keys and values of their own, without projecting every edge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphattn.conv._remembered import remembered
from graphattn.graph import TokenGraph
from graphattn_kernels import sddmm, spmm
from graphattn_kernels.structure import edges_as_sources

__all__ = ["EdgeRows"]


class EdgeRows:
    """The rows :math:`W e` of all edges, ``[E, H, C]``, seen only through products.

    .. math::
        q_t^\\top (W e_{st}) = (W^\\top q_t)^\\top e_{st}, \\qquad
        \\sum_s \\alpha_{st} W e_{st} = W \\sum_s \\alpha_{st} e_{st}

    So the projection can move from the edges to the targets, of which there are far fewer, and what stays on the
    edges is ``[E, F]``. Where F is larger than C, the projected rows are the smaller ones and are made after all.

    Args:
        graph: The token graph.
        edge_attr: ``[E, F]``.
        project: The linear map W, without bias: ``[*, F]`` to ``[*, H, C]``.
        channels: C.
        backend: See :func:`graphattn.attend`.
    """

    def __init__(
        self,
        graph: TokenGraph,
        edge_attr: Tensor,
        project: Callable[[Tensor], Tensor],
        channels: int,
        backend: str = "auto",
    ) -> None:
        self._structure = remembered((graph,), ("edge rows",), lambda: edges_as_sources(graph.structure))
        self._backend = backend
        features = edge_attr.shape[1]
        if features > channels:
            self._map, self._rows = None, project(edge_attr)
        else:
            # The image of the identity is the matrix, whatever the module does to its weight.
            self._map = project(torch.eye(features, dtype=edge_attr.dtype, device=edge_attr.device))  # [F, H, C]
            self._rows = edge_attr.unsqueeze(1).expand(-1, self._map.shape[1], -1)

    def dot(self, q: Tensor) -> Tensor:
        """Products with the target's query ``[N_t, H, C]``: ``[E, H]``."""
        if self._map is not None:
            q = torch.einsum("thc,fhc->thf", q, self._map)
        return sddmm(self._structure, q, self._rows.to(q.dtype), backend=self._backend)

    def sum(self, weights: Tensor) -> Tensor:
        """Weighted sums ``[N_t, H, C]`` over every target's in-edges; weights are ``[E, H]``."""
        out = spmm(self._structure, weights, self._rows.to(weights.dtype), backend=self._backend)
        return out if self._map is None else torch.einsum("thf,fhc->thc", out, self._map)
