"""Walks along the edges: ``csr_attention`` by Triton, Numba, gathering, or densely as the reference."""

from __future__ import annotations

from graphattn.backends.base import Backend, Call, Result, reason_in
from graphattn.errors import BackendError
from graphattn_kernels import backends as kernels
from graphattn_kernels.csr_attention.api import attend_checked, check_channels, default_scale, select
from graphattn_kernels.csr_attention.inputs import Inputs

__all__ = ["EDGES"]


class Edges(Backend):
    """Every option of attend, on any graph; a pattern is listed edge by edge."""

    operation = "csr_attention"

    def __init__(self, name: str) -> None:
        self.name = name
        self.about = kernels.BACKENDS[name]

    def missing(self) -> str | None:
        return kernels.status()[self.name]

    def reason(self, call: Call) -> str | None:
        try:
            select(self.name, call.q, call.v)
        except BackendError as error:
            return reason_in(error)
        return None

    def run(self, call: Call) -> Result:
        graph, fold, score, structure = call.graph, call.fold, call.score, call.graph.structure
        num_edges = structure.num_edges
        q, k, v = fold.tokens(call.q), fold.tokens(call.k), fold.tokens(call.v)
        att, slope = score.additive() if score.fused == "additive" else (None, None)
        if att is not None:
            att = fold.heads(att).to(v.dtype)
        gate = fold.edges("edge_gate", call.edge_gate, num_edges, channels=True)
        check_channels(q, gate, att)
        inputs = Inputs(
            *(q, k, v, fold.bias(call.edge_bias, call.q, num_edges), gate, None, att),
            call.dropout_seed if call.dropout_p else None,
            default_scale(q, slope) if call.scale is None else float(call.scale),
            *(call.clamp, slope, float(call.dropout_p), call.need_product),
        )
        out, lse, product = attend_checked(structure, inputs, self.name)
        targets = graph.num_targets
        return Result(
            fold.untokens(out, targets),
            fold.untokens(lse.unsqueeze(-1), targets).squeeze(-1) if call.need_lse else None,
            fold.unedges(product) if call.need_product and product is not None else None,
        )


EDGES = tuple(Edges(name) for name in kernels.BACKENDS)
