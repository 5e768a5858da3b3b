"""Mechanisms: named choices of graph, score, normaliser and propagator, as modules."""

from graphattn.mechanisms.base import MECHANISMS, Mechanism
from graphattn.mechanisms.graph_transformer import GraphTransformerAttention

__all__ = ["MECHANISMS", "GraphTransformerAttention", "Mechanism"]
