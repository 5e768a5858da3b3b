"""The operator and its gradient, see :mod:`graphattn_kernels._recomputed`."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from graphattn_kernels._library import Packed
from graphattn_kernels._recomputed import register_attention
from graphattn_kernels.blocks import NUM_ARGS, SCHEMA, flat, unflat

__all__ = ["block_attention"]


@cache  # an import statement takes a microsecond each time
def _kernels() -> ModuleType:
    from graphattn_kernels.block_attention.impl import triton

    return triton


block_attention = register_attention("block_attention", SCHEMA, Packed(NUM_ARGS, flat, unflat), _kernels)
