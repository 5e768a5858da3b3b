"""PyTorch's own dense attention, where the graph is dense: complete, causal (but for a few rows), or complete in
members of one size."""

from __future__ import annotations

from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from graphattn.backends._dense import dense_attention
from graphattn.backends._windowed import windowed_attention
from graphattn.backends.base import Backend, Call, Result
from graphattn.backends.plain import Layout, lacks, positive_scale
from graphattn.graph import TokenGraph
from graphattn.graph.check import waits_for_nothing
from graphattn.graph.graph_window import GraphWindow
from graphattn.graph.rules import Blocks, Causal, Complete

__all__ = ["Sdpa", "dense_members"]

# In turn, whichever takes the tensors first. Complete graph of 4096 tokens, 8 heads of 64, bfloat16, on an H200,
# forward and forward + backward: cuDNN 0.077 / 0.282 ms, flash 0.120 / 0.438 ms, memory-efficient 0.280 / 1.37 ms; of
# 16,384 tokens 1.19 / 4.30, 1.80 / 6.59 and 4.22 / 17.5 ms (experiments/results/h200-kernels, W6).
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Sdpa(Backend):
    """Nothing of the graph is built. On CUDA, gradients repeat bit by bit only where
    ``torch.use_deterministic_algorithms(True)`` is set."""

    name = "sdpa"
    about = "PyTorch's scaled_dot_product_attention: cuDNN or flash on CUDA, flash on CPU"
    operation = "scaled_dot_product_attention"

    def reason(self, call: Call) -> str | None:
        reason = lacks(call)
        if reason is not None:
            return reason
        pattern = call.graph.pattern
        if isinstance(pattern, GraphWindow):
            return None
        if dense_members(call.graph) is None:
            return "it is for patterns that are complete, causal, or blocks of one size, and for windows of prompts"
        return None

    def run(self, call: Call) -> Result:
        pattern, (q, scale) = call.graph.pattern, positive_scale(call.q, call.scale)
        if isinstance(pattern, GraphWindow):
            layout = Layout(pattern, call.q)
            q, k, v = (layout.fold(x) for x in (q, call.k, call.v))
            return Result(layout.unfold(windowed_attention(pattern, q, k, v, scale, _ORDER)))
        dense = dense_members(call.graph)
        assert dense is not None
        members, is_causal = dense
        # A view less is time on the host, which is what a short sequence costs.
        as_it_is = members == 1 and call.q.dim() == 4
        q, k, v = (
            (x if as_it_is else x.reshape(-1, x.shape[-3] // members, *x.shape[-2:])).transpose(1, 2)
            for x in (q, call.k, call.v)
        )
        if call.device.type == "cuda":
            out = dense_attention(_ORDER, q, k, v, is_causal=is_causal, scale=scale)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)
        out = out.transpose(1, 2)
        return Result(out if as_it_is else out.reshape(*call.q.shape[:-1], call.v.shape[-1]))


def dense_members(graph: TokenGraph) -> tuple[int, bool] | None:
    """Number of members, all of one size, in each of which attention is dense, and whether it is causal; ``None``: the
    graph is another, or compiled code may not ask."""
    pattern = graph.pattern
    if isinstance(pattern, Complete):
        return 1, False
    if type(pattern) is Causal:
        return 1, True
    if isinstance(pattern, Blocks) and (pattern.sizes_known or not waits_for_nothing(graph.device)):
        return (graph.num_members, False) if pattern.equal_members else None
    return None
