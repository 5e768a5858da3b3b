"""Tiles on tensor cores: ``block_attention`` over pairs of blocks of tokens that share an edge."""

from __future__ import annotations

from graphattn.backends.base import Backend, Call, Result, reason_in
from graphattn.backends.plain import Layout, lacks
from graphattn.errors import BackendError
from graphattn.graph.check import waits_for_nothing
from graphattn.graph.prepared import blocks_of, builds_tiles_at_once
from graphattn_kernels import backends as kernels
from graphattn_kernels.block_attention.api import attend_checked, select

__all__ = ["Tiles"]


class Tiles(Backend):
    """Any graph without duplicate edges; made for those that are dense in places. A pattern is not listed."""

    name = "tiles"
    about = "Triton kernels for CUDA over tiles of the graph, on tensor cores"
    operation = "block_attention"

    def missing(self) -> str | None:
        return kernels.status()["triton"]

    def lacks(self, call: Call) -> str | None:
        """The part of :meth:`reason` that does not depend on the edges; waits for nothing."""
        reason = lacks(call, clamp=True, lse=True) or Layout.reason(call)
        if reason is not None:
            return reason
        try:
            select("triton", call.q, call.v)
        except BackendError as error:
            return reason_in(error)
        return None

    def reason(self, call: Call) -> str | None:
        graph, reason = call.graph, self.lacks(call)
        if reason is not None or graph._blocks is not None or builds_tiles_at_once(graph):
            return reason
        if waits_for_nothing(call.device):
            return "its tiles are not built; call graph.prepare('tiles') before compiling or capturing"
        return "the graph has duplicate edges, and tiles hold each edge once" if graph.has_duplicates else None

    def run(self, call: Call) -> Result:
        q, k, v = call.q, call.k, call.v
        scale = q.shape[-1] ** -0.5 if call.scale is None else float(call.scale)
        if q.dim() == 4:  # nothing to fold
            out, lse = attend_checked(blocks_of(call.graph), q, k, v, scale, call.clamp)
            return Result(out, lse if call.need_lse else None)
        layout = Layout(call.graph, q)
        q, k, v = layout.fold(q), layout.fold(k), layout.fold(v)
        out, lse = attend_checked(blocks_of(call.graph), q, k, v, scale, call.clamp)
        return Result(layout.unfold(out), layout.unfold(lse) if call.need_lse else None)
