"""Propagators: move values along weights."""

from graphattn.propagate.base import PROPAGATORS, Propagator, resolve_propagator
from graphattn.propagate.one_hop import OneHop
from graphattn.propagate.operator import AttentionOperator, EdgeOperator

__all__ = ["PROPAGATORS", "AttentionOperator", "EdgeOperator", "OneHop", "Propagator", "resolve_propagator"]
