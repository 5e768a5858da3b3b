"""The operator and its gradient, see :mod:`graphattn_kernels._recomputed`."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from graphattn_kernels._library import Packed
from graphattn_kernels._recomputed import register_attention
from graphattn_kernels.lists import NUM_ARGS, SCHEMA, unflat

__all__ = ["list_attention"]


@cache  # an import statement takes a microsecond each time
def _kernels() -> ModuleType:
    from graphattn_kernels.list_attention.impl import triton

    return triton


list_attention = register_attention("list_attention", SCHEMA, Packed(NUM_ARGS, tuple, unflat), _kernels)
