"""This library, through its public functions, autograd included."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from experiments.benchmarks.peers.base import Call, Peer
from experiments.benchmarks.workloads import SLOPE, Workload

__all__ = ["OURS"]


class Attend(Peer):
    """``graphattn.attend``: the backend that it chooses itself."""

    name = "ours"
    sections = ("W1", "W1gat", "W2", "W3", "W4", "W4img", "W5", "W6", "CPU")
    compiles = True
    backend: ClassVar[str] = "auto"

    def build(self, work: Workload) -> Call:
        import graphattn

        graph = work.graph.token_graph()
        if work.score != "dot":
            return _additive(graph.structure, work)

        def call() -> Tensor:
            return graphattn.attend(
                graph, work.q, work.k, work.v, edge_gate=work.edge_gate, scale=work.scale, backend=self.backend
            )

        return call


def _additive(structure, work: Workload) -> Call:  # type: ignore[no-untyped-def]
    """Scores of GAT and GATv2: the fused operation itself, which is public too."""
    from graphattn.kernels import csr_attention

    def call() -> Tensor:
        out, _ = csr_attention(structure, work.q, work.k, work.v, att=work.att, negative_slope=SLOPE, scale=1.0)
        return out

    return call


class CsrAttention(Attend):
    """``graphattn.kernels.csr_attention``: the fused operation without the checks and choices of ``attend``."""

    name = "ours: csr_attention"
    sections = ("W2",)

    def build(self, work: Workload) -> Call:
        from graphattn.kernels import csr_attention

        structure = work.graph.token_graph().structure

        def call() -> Tensor:
            return csr_attention(structure, work.q, work.k, work.v, edge_gate=work.edge_gate, scale=work.scale)[0]

        return call


def _by_name(backend: str, sections: tuple[str, ...]) -> type[Attend]:
    name = f"ours: {backend}"
    return type("AttendBy", (Attend,), {"name": name, "backend": backend, "sections": sections, "__doc__": name})


OURS: tuple[type[Peer], ...] = (
    Attend,
    CsrAttention,
    # The backends that the automatic choice is between, so that the table shows whether it chooses well.
    _by_name("triton", ("W4img", "W5")),
    _by_name("tiles", ("W4", "W4img", "W5", "W6")),
)
