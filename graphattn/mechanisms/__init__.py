"""Mechanisms: named choices of graph, score, normaliser and propagator, as modules."""

from graphattn.mechanisms.base import MECHANISMS, Mechanism
from graphattn.mechanisms.gated_gcn import GatedGCN
from graphattn.mechanisms.graph_transformer import GraphTransformerAttention
from graphattn.mechanisms.infsa import InfSA
from graphattn.mechanisms.linear_infsa import LinearInfSA
from graphattn.mechanisms.multihead import MultiheadAttention

__all__ = [
    "MECHANISMS",
    "GatedGCN",
    "GraphTransformerAttention",
    "InfSA",
    "LinearInfSA",
    "Mechanism",
    "MultiheadAttention",
]
