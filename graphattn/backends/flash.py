"""The flash-attn package, where it is installed: dense graphs and sliding windows. Never needed, taken by name only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from graphattn.backends.base import Backend, Call, Result
from graphattn.backends.plain import lacks, positive_scale
from graphattn.backends.sdpa import dense_members
from graphattn.graph.rules import Window
from graphattn.optional import available

__all__ = ["Flash"]

_WIDTH = 256  # channels of a head at most


class Flash(Backend):
    """FlashAttention 4 (``flash_attn.cute``) where it can be imported, else 2. The last bits of gradients may differ
    between runs."""

    name = "flash"
    about = "the flash-attn package for CUDA, taken by name only"
    operation = "flash_attn_func"

    def missing(self) -> str | None:
        return None if available("flash_attn") else "flash-attn is not installed (pip install flash-attn)"

    def reason(self, call: Call) -> str | None:
        reason = self.missing() or lacks(call)
        if reason is not None:
            return reason
        if call.device.type != "cuda":
            return f"it needs CUDA tensors, got {call.device.type}"
        if call.q.dtype not in (torch.float16, torch.bfloat16):
            return f"it takes float16 or bfloat16, got {call.q.dtype}"
        width = call.q.shape[-1]
        if width != call.v.shape[-1] or width % 8 or width > _WIDTH:
            return f"it takes q and v of one width, 8 to {_WIDTH} in steps of 8, got {width} and {call.v.shape[-1]}"
        if _window(call) is None and dense_members(call.graph) is None:
            return "it is for patterns that are complete, causal, blocks of one size, or windows without dilation"
        return None

    def run(self, call: Call) -> Result:
        window = _window(call)
        options: dict[str, Any]
        if window is None:
            dense = dense_members(call.graph)
            assert dense is not None
            members, options = dense[0], {"causal": dense[1]}
        else:
            reach = window.size, 0 if window.causal else window.size
            members, options = 1, {"causal": window.causal, "window_size": reach}
        q, scale = positive_scale(call.q, call.scale)
        q, k, v = (x.reshape(-1, x.shape[-3] // members, *x.shape[-2:]) for x in (q, call.k, call.v))
        out = _attention()(q, k, v, softmax_scale=scale, **options)
        out = out[0] if isinstance(out, tuple) else out  # version 4 adds the log-sum-exp
        return Result(out.reshape(call.q.shape))


def _window(call: Call) -> Window | None:
    pattern = call.graph.pattern
    return pattern if isinstance(pattern, Window) and pattern.dilation == 1 else None


@functools.cache
def _attention() -> Callable[..., Any]:
    try:
        from flash_attn.cute import flash_attn_func  # type: ignore[import-not-found]
    except ImportError:
        from flash_attn import flash_attn_func  # type: ignore[import-not-found]
    return flash_attn_func
