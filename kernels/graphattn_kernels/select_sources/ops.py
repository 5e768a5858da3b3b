"""Schemas and fakes; a choice has no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels.bits import WORD

__all__ = ["order_sources", "select_bits", "select_lists"]


def _order(scores: Tensor) -> Tensor:
    from graphattn_kernels.select_sources.impl import triton_order

    return triton_order.order_sources(scores)


def _bits(*args: Any) -> Tensor:
    from graphattn_kernels.select_sources.impl import triton

    return triton.select_bits(*args)


def _lists(*args: Any) -> tuple[Tensor, Tensor]:
    from graphattn_kernels.select_sources.impl import triton

    return triton.select_lists(*args)


def _bits_fake(scores: Tensor, *_: Any) -> Tensor:
    return scores.new_empty((*scores.shape[:2], -(-scores.shape[2] // WORD)), dtype=torch.int32)


def _lists_fake(scores: Tensor, k: int, room: int, *_: Any) -> tuple[Tensor, Tensor]:
    shape = scores.shape[:2]
    return scores.new_empty((*shape, room), dtype=torch.int32), scores.new_empty(shape, dtype=torch.int32)


order_sources = register(
    "order_sources(Tensor scores) -> Tensor", _order, lambda scores: scores.new_empty(scores.shape, dtype=torch.int64)
)
select_bits = register(
    "select_bits(Tensor scores, SymInt k, float at, Tensor? always, Tensor? full, SymInt own) -> Tensor",
    _bits,
    _bits_fake,
)
select_lists = register(
    "select_lists(Tensor scores, SymInt k, SymInt room, Tensor? always, SymInt own) -> (Tensor, Tensor)",
    _lists,
    _lists_fake,
)
