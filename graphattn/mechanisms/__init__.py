"""Mechanisms: named choices of graph, score, normaliser and propagator, as modules."""

from graphattn.mechanisms.base import MECHANISMS, Mechanism, Transform
from graphattn.mechanisms.connectivity import Connectivity
from graphattn.mechanisms.egt import EGTAttention
from graphattn.mechanisms.gated_gcn import GatedGCN
from graphattn.mechanisms.graph_transformer import GraphTransformerAttention
from graphattn.mechanisms.graph_window import GraphWindowAttention, Window, WindowSchedule
from graphattn.mechanisms.infsa import InfSA
from graphattn.mechanisms.linear_infsa import LinearInfSA
from graphattn.mechanisms.multihead import MultiheadAttention
from graphattn.mechanisms.sparsifiner import Sparsifiner
from graphattn.mechanisms.ssa import SSA, Subsampled, sampling

__all__ = [
    "SSA",
    "MECHANISMS",
    "Connectivity",
    "EGTAttention",
    "GatedGCN",
    "GraphTransformerAttention",
    "GraphWindowAttention",
    "InfSA",
    "LinearInfSA",
    "Mechanism",
    "MultiheadAttention",
    "Sparsifiner",
    "Subsampled",
    "Transform",
    "sampling",
    "Window",
    "WindowSchedule",
]
