"""Inference on a graph that does not fit on the device: all nodes, one layer after another."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ConfigError
from graphattn.graph import TokenGraph
from graphattn.training.data.neighbors import InEdges
from graphattn.training.inputs import batch_fields

__all__ = ["layerwise_inference"]

_PARTS = ("encode_nodes", "blocks", "head")


@torch.no_grad()
def layerwise_inference(model: nn.Module, data: Any, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """What a model gives for every node of a graph, computed layer by layer on batches of nodes.

    Hamilton et al., "Inductive Representation Learning on Large Graphs", NeurIPS 2017, algorithm 1. Each layer reads
    the rows of the layer before from the host and takes some nodes at a time with all their in-edges: nothing is
    sampled, no row is computed twice, and the device holds one batch. It equals ``model(data)`` in evaluation mode
    where a row depends on the rows that its node reads, and on nothing else of the graph.

    The model, as :class:`graphattn.models.graph.GraphTransformer`, has the parts

    - ``encode_nodes(x, pe=None, ...)``: rows of nodes ``[n, C]``; its parameters name fields of the data;
    - ``encode_edges(edge_attr, num_edges)``, if there are edge rows: ``[e, C]`` or ``None``;
    - ``blocks``: modules called ``block(rows, graph, edge_rows)`` with a :class:`~graphattn.graph.TokenGraph`, which
      return new rows of both;
    - ``head``: predictions from rows of nodes.

    Args:
        model: The model, in evaluation mode, on ``device``.
        data: A PyG ``Data`` on the host.
        batch_size: Nodes of a batch.
        device: Where to compute.

    Returns:
        Predictions ``[N, out_channels]`` on ``device``.

    Raises:
        ConfigError: If the model lacks the parts, or pools its nodes.
        ArgumentError: If ``batch_size`` is below 1.
    """
    absent = [name for name in _PARTS if not hasattr(model, name)]
    if absent or getattr(model, "readout", "node") != "node":
        lack = f"has no {', '.join(absent)}" if absent else "pools its nodes"
        raise ConfigError(
            f"layer-wise inference needs a model of nodes with {', '.join(_PARTS)}; {type(model).__name__} {lack}. "
            "Use evaluate='full', or 'neighbors' of NeighborDataModule"
        )
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
    parts: Any = model
    count = int(data.num_nodes)
    slices = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    fields = _fields_of(model, data)
    h = torch.cat(
        [
            parts.encode_nodes(**{name: value[part].to(device) for name, value in fields.items()}).cpu()
            for part in slices
        ]
    )
    edges = InEdges(data.edge_index, count)
    edge = _edge_rows(parts, data, edges, slices, device)
    for block in parts.blocks:
        h, edge = _through(block, h, edge, edges, slices, device)
    return torch.cat([parts.head(h[part].to(device)) for part in slices])


def _fields_of(model: Any, data: Any) -> dict[str, Tensor]:
    names = inspect.signature(model.encode_nodes).parameters
    fields = {name: value for name, value in batch_fields(data).items() if name in names and value is not None}
    absent = [name for name, p in names.items() if p.default is p.empty and name not in fields]
    if absent:
        raise ConfigError(f"{type(model).__name__}.encode_nodes needs {', '.join(absent)}, which the data do not have")
    return fields


def _edge_rows(parts: Any, data: Any, edges: InEdges, slices: list[slice], device: Any) -> Tensor | None:
    """Encoded edges in the order of ``edges``, batch by batch."""
    if not hasattr(parts, "encode_edges"):
        return None
    rows = []
    for part in slices:
        low, high = edges.ptr[part.start], edges.ptr[part.stop]
        attr = None
        if data.edge_attr is not None:
            attr = data.edge_attr[torch.from_numpy(edges.edge[low:high]).long()].to(device)
        encoded = parts.encode_edges(attr, int(high - low))
        if encoded is None:
            return None
        rows.append(encoded.cpu())
    return torch.cat(rows)


def _through(
    block: Any, h: Tensor, edge: Tensor | None, edges: InEdges, slices: list[slice], device: Any
) -> tuple[Tensor, Tensor | None]:
    """All rows after one block."""
    new_h, new_edge = [], []
    for part in slices:
        low, high = edges.ptr[part.start], edges.ptr[part.stop]
        size, source = part.stop - part.start, edges.source[low:high]
        met = np.unique(source)
        others = met[(met < part.start) | (met >= part.stop)]
        outside = (source < part.start) | (source >= part.stop)
        place = np.where(outside, size + np.searchsorted(others, source), source - part.start)
        target = np.repeat(np.arange(size), np.diff(edges.ptr[part.start : part.stop + 1]))
        nodes = torch.from_numpy(np.concatenate((np.arange(part.start, part.stop), others)))
        pairs = torch.from_numpy(np.stack((place, target))).to(device)
        graph = TokenGraph.from_edge_index(pairs, len(nodes), validate=False)
        rows, edge_rows = block(h[nodes].to(device), graph, None if edge is None else edge[low:high].to(device))
        new_h.append(rows[:size].cpu())
        if edge_rows is not None:
            new_edge.append(edge_rows.cpu())
    return torch.cat(new_h), torch.cat(new_edge) if new_edge else None
