"""Random input for graph models."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphattn.graph import TokenGraph
from graphattn.models.egt import EGT
from graphattn.models.gps import GPS
from graphattn.models.graph import GraphTransformer
from graphattn.models.image import VisionTransformer
from graphattn.models.sequence import CausalTransformer
from graphattn.testing import random_graph

PE, WL = 3, 7


def make_inputs(model: nn.Module, graph: TokenGraph, seed: int = 0) -> dict[str, Any]:
    """What the model's ``forward`` asks for, by name, for the nodes and edges of a graph; or images, or text."""
    random = torch.Generator().manual_seed(seed)
    if isinstance(model, VisionTransformer):
        embed = model.patch_embed
        return {"x": torch.randn(4, embed.proj.in_channels, *embed.img_size, generator=random).to(embed.proj.weight)}

    if isinstance(model, CausalTransformer):
        return {"tokens": torch.randint(model.vocab, (graph.num_tokens,), generator=random)}

    def rows(encoder: nn.Module | None, count: int) -> torch.Tensor | None:
        if encoder is None:
            return None
        if encoder.linear is not None:
            return torch.randn(count, encoder.linear.in_features, generator=random).to(encoder.linear.weight.dtype)
        ids = [torch.randint(table.num_embeddings, (count,), generator=random) for table in encoder.tables]
        return ids[0] if len(ids) == 1 else torch.stack(ids, 1)

    def encoding(columns: int | None) -> torch.Tensor | None:
        return None if columns is None else torch.randn(nodes, columns, generator=random)

    nodes, edges = graph.num_tokens, graph.num_edges
    embed = model.embed
    values: dict[str, Any] = {
        "x": rows(getattr(embed, "features", embed), nodes),
        "edge_index": graph.edge_index,
        "edge_attr": None if getattr(model, "constant_edges", False) else rows(model.embed_edge, edges),
        "batch": graph.target_batch,
        "num_graphs": graph.num_members,
    }
    if isinstance(model, EGT):
        values["pe"] = encoding(None if model.embed_pe is None else model.embed_pe.in_features)
        values["num_pairs"] = int(graph.target_batch.bincount().square().sum())
    if isinstance(model, GraphTransformer):
        pe, wl = model.embed_pe, model.embed_wl
        values["pe"] = encoding(None if pe is None else pe.in_features)
        values["wl"] = None if wl is None else torch.randint(wl.num_embeddings, (nodes,), generator=random)
    elif isinstance(model, GPS):
        values["rwse"], values["pe"] = encoding(embed.rwse_dim), encoding(embed.pe_dim)
        values["num_pairs"] = int(graph.target_batch.bincount().square().sum())
    return {name: values[name] for name in inspect.signature(model.forward).parameters if name in values}


@pytest.fixture
def inputs() -> Callable[..., dict[str, Any]]:
    """``inputs(model, graph=a ragged batch, seed=0)``."""

    def make(model: nn.Module, graph: TokenGraph | None = None, seed: int = 0) -> dict[str, Any]:
        return make_inputs(model, random_graph(1, "batch") if graph is None else graph, seed)

    return make
