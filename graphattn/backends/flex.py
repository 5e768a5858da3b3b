"""PyTorch's FlexAttention: any pattern by its rule, other graphs by the bits of their tiles."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphattn.backends.base import Backend, Call, Result
from graphattn.backends.plain import Layout, lacks
from graphattn.graph.check import waits_for_nothing
from graphattn.graph.prepared import flex_mask_of

__all__ = ["Flex"]

_LEAST_WIDTH = 16  # channels of a head that its CUDA kernels take


class Flex(Backend):
    """A rule for the bias (ALiBi) as well. On CUDA the kernel is compiled for each rule at its first use."""

    name = "flex"
    about = "PyTorch's FlexAttention (CPU: forward only)"
    operation = "flex_attention"

    def lacks(self, call: Call) -> str | None:
        """The part of :meth:`reason` that does not depend on the edges; waits for nothing."""
        reason = lacks(call, clamp=True, lse=True, rule=True) or Layout.reason(call)
        if reason is not None:
            return reason
        if call.device.type == "cpu" and call.needs_grad:
            return "it has no gradient on CPU"
        if call.device.type != "cpu":
            if min(call.q.shape[-1], call.v.shape[-1]) < _LEAST_WIDTH:
                return f"it takes {_LEAST_WIDTH} channels a head or more, got {call.q.shape[-1]} and {call.v.shape[-1]}"
            if call.q.dtype == torch.float64:
                return "it takes float16, bfloat16 or float32, got torch.float64"
        return None

    def reason(self, call: Call) -> str | None:
        graph, reason = call.graph, self.lacks(call)
        if reason is not None or graph._flex_mask is not None:
            return reason
        if waits_for_nothing(call.device):
            return "its mask is not built; call graph.prepare('flex') before compiling or capturing"
        return "the graph has duplicate edges, and tiles hold each edge once" if graph.has_duplicates else None

    def run(self, call: Call) -> Result:
        layout = Layout(call.graph, call.q)
        q, k, v = (layout.fold(x).transpose(1, 2) for x in (call.q, call.k, call.v))
        out, lse = _attention(q.device.type)(
            q,
            k,
            v,
            score_mod=_score_mod(call, layout.heads),
            block_mask=flex_mask_of(call.graph),
            scale=call.scale,
            return_lse=True,
        )
        return Result(layout.unfold(out.transpose(1, 2)), layout.unfold(lse.transpose(1, 2)) if call.need_lse else None)


def _score_mod(call: Call, heads: int) -> Callable[..., Tensor] | None:
    bias, clamp = call.edge_bias, call.clamp
    if bias is None and clamp is None:
        return None

    def modify(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if callable(bias):
            score = score + bias(t, s, h % heads)
        return score if clamp is None else score.clamp(-clamp, clamp)

    return modify


def _attention(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():
        return flex_attention
    return _compiled() if device == "cuda" else functools.partial(_eager, flex_attention)


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _eager(attention: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():  # that it is slow and holds all pairs: on CPU it serves to compare
        warnings.simplefilter("ignore")
        # On CPU, PyTorch refuses tensors that require a gradient, even where none is computed.
        return attention(*(x if torch.is_grad_enabled() else x.detach() for x in args), **options)
