"""Lists of sources: ``list_attention`` for graphs in which each block of targets reads one list."""

from __future__ import annotations

from graphattn.backends.base import Backend, Call, Result
from graphattn.backends.plain import Layout, lacks
from graphattn.graph.lists import ListGraph
from graphattn_kernels.list_attention.api import attend_checked

__all__ = ["Lists"]


class Lists(Backend):
    """Keys and values gathered for whole blocks of targets. No edge is listed, and nothing waits for the device."""

    name = "lists"
    about = "lists of sources, gathered: PyTorch's dense attention where they are disjoint, Triton, or PyTorch"
    operation = "list_attention"

    def reason(self, call: Call) -> str | None:
        if not isinstance(call.graph, ListGraph):
            return "it is for graphs whose blocks of targets share lists of sources"
        return lacks(call, clamp=True, lse=True) or Layout.reason(call)

    def run(self, call: Call) -> Result:
        graph, layout = call.graph, Layout(call.graph, call.q)
        assert isinstance(graph, ListGraph)
        q, k, v = [layout.fold(x) for x in (call.q, call.k, call.v)]
        scale = q.shape[-1] ** -0.5 if call.scale is None else float(call.scale)
        out, lse = attend_checked(graph.lists, q, k, v, scale, call.clamp, call.need_lse)
        return Result(layout.unfold(out), layout.unfold(lse) if call.need_lse and lse is not None else None)
