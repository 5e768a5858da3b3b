"""Schema and fake; there is nothing to differentiate."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels.connected_components.impl import gather

__all__ = ["connected_components"]


def _implementation(backend: str) -> ModuleType:
    # Imported on first use: both compile for the machine they run on.
    if backend == "triton":
        from graphattn_kernels.connected_components.impl import triton

        return triton
    if backend == "numba":
        from graphattn_kernels.connected_components.impl import numba

        return numba
    return gather


def _forward(edges: Tensor, neighbours: int, backend: str) -> tuple[Tensor, Tensor]:
    return _implementation(backend).connected_components(edges, neighbours)


def _fake(edges: Tensor, neighbours: int, backend: str) -> tuple[Tensor, Tensor]:
    return edges.new_empty(edges.shape, dtype=torch.int32), edges.new_empty(edges.shape[:1], dtype=torch.int32)


connected_components = register(
    "connected_components(Tensor edges, int neighbours, str backend) -> (Tensor, Tensor)", _forward, _fake
)
