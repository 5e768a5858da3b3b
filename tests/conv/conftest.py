"""Small graphs for the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class Sample(NamedTuple):
    """Inputs of a layer: ``[N_s, F]``, ``[N_t, F]`` (the same in a square graph), ``[2, E]``, ``[E, D]``."""

    x: Tensor
    x_target: Tensor
    edge_index: Tensor
    edge_attr: Tensor


@pytest.fixture
def sample() -> Callable[..., Sample]:
    """Random graphs in which every target has an in-edge; edges in no order, with duplicates and self-loops."""

    def make(
        sources: int = 7,
        edges: int = 30,
        *,
        targets: int | None = None,
        width: int = 6,
        edge_width: int = 3,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        size = sources if targets is None else targets
        source = torch.randint(sources, (edges,), generator=generator)
        target = torch.arange(edges) % size
        order = torch.randperm(edges, generator=generator)
        x = torch.randn(sources, width, generator=generator, dtype=torch.float64).to(dtype)
        x_target = x
        if targets is not None:
            x_target = torch.randn(size, width, generator=generator, dtype=torch.float64).to(dtype)
        edge_attr = torch.randn(edges, edge_width, generator=generator, dtype=torch.float64).to(dtype)
        return Sample(x, x_target, torch.stack([source, target])[:, order], edge_attr)

    return make
