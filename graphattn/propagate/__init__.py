"""Propagators: move values along weights."""

from graphattn.propagate.base import PROPAGATORS, Propagator, resolve_propagator
from graphattn.propagate.eigenvector import Eigenpair, Eigenvector, dominant_eigenvector
from graphattn.propagate.heat import HeatKernel
from graphattn.propagate.neumann import Neumann
from graphattn.propagate.one_hop import OneHop
from graphattn.propagate.operator import AttentionOperator, EdgeOperator
from graphattn.propagate.pagerank import PersonalizedPageRank
from graphattn.propagate.pairs import PairOperator
from graphattn.propagate.report import SolveReport
from graphattn.propagate.resolvent import Katz, Resolvent

__all__ = [
    "PROPAGATORS",
    "AttentionOperator",
    "EdgeOperator",
    "Eigenpair",
    "Eigenvector",
    "HeatKernel",
    "Katz",
    "Neumann",
    "OneHop",
    "PairOperator",
    "PersonalizedPageRank",
    "Propagator",
    "Resolvent",
    "SolveReport",
    "dominant_eigenvector",
    "resolve_propagator",
]
