"""Helpers for tests of graphattn and of code built on it."""

from graphattn.testing.checks import check_mechanism, check_score
from graphattn.testing.graphs import GRAPH_KINDS, random_graph
from graphattn.testing.memory import LiveMemory
from graphattn.testing.oracle import assert_backends_equal, assert_within_budget, eager_attention
from graphattn.testing.packages import module_name as module_name
from graphattn.testing.packages import require_or_skip, required_packages

__all__ = [
    "GRAPH_KINDS",
    "LiveMemory",
    "assert_backends_equal",
    "assert_within_budget",
    "check_mechanism",
    "check_score",
    "eager_attention",
    "random_graph",
    "require_or_skip",
    "required_packages",
]
