"""Walks along the edges: ``csr_attention`` by Triton, Numba, gathering, or densely as the reference."""

from __future__ import annotations

from graphattn.backends.base import Backend, Call, Result, reason_in
from graphattn.errors import BackendError
from graphattn_kernels import backends as kernels
from graphattn_kernels import csr_attention
from graphattn_kernels.csr_attention.api import select

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
        graph, fold, score, v = call.graph, call.fold, call.score, call.v
        num_edges = graph.num_edges
        att, slope = score.additive() if score.fused == "additive" else (None, None)
        out, lse, *product = csr_attention(
            graph.structure,
            fold.tokens(call.q),
            fold.tokens(call.k),
            fold.tokens(v),
            edge_bias=fold.bias(call.edge_bias, call.q, num_edges),
            edge_gate=fold.edges("edge_gate", call.edge_gate, num_edges, channels=True),
            att=None if att is None else fold.heads(att).to(v.dtype),
            negative_slope=slope,
            scale=call.scale,
            clamp=call.clamp,
            dropout_p=call.dropout_p,
            dropout_seed=call.dropout_seed,
            need_product=call.need_product,
            backend=self.name,
        )
        targets = graph.num_targets
        return Result(
            fold.untokens(out, targets),
            fold.untokens(lse.unsqueeze(-1), targets).squeeze(-1) if call.need_lse else None,
            fold.unedges(product[0]) if call.need_product else None,
        )


EDGES = tuple(Edges(name) for name in kernels.BACKENDS)
