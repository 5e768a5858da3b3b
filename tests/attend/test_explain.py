"""explain says what attend does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import graphattn
from graphattn.attention import attend
from graphattn.backends import BACKENDS
from graphattn.errors import ArgumentError, BackendError
from graphattn.explanation import explain
from graphattn.testing import random_graph

GRAPH = random_graph(0, "hub")
X = torch.randn(GRAPH.num_tokens, 2, 4)
READY = torch.randn(GRAPH.num_edges, 2)


class Recorder(TorchDispatchMode):
    """The operators of this library that run, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "graphattn":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "fused": ({}, ("csr_attention",), "one fused operation"),
    "weights": ({"need_weights": True}, ("sddmm", "segment_softmax", "spmm"), "need_weights asks for the weights"),
    "ready": ({"score": READY}, ("segment_softmax", "spmm"), "the score is a ready edge tensor"),
    "sigmoid": ({"normalizer": "sigmoid"}, ("sddmm", "Sigmoid", "spmm"), "no kernel knows the normaliser Sigmoid"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_operations_are_those_that_run(case: str) -> None:
    options, operations, why = CASES[case]
    q = None if "score" in options else X
    explanation = explain(GRAPH, q, q, X, backend="gather", **options)
    assert explanation.operations == operations and why in explanation.why
    with Recorder() as recorder:
        attend(GRAPH, q, q, X, backend="gather", **options)
    assert tuple(recorder.names) == tuple(name for name in operations if name != "Sigmoid")


@pytest.mark.parametrize("options", [{}, {"need_weights": True}], ids=["fused", "steps"])
def test_every_other_backend_has_a_reason(options: dict[str, Any]) -> None:
    explanation = explain(GRAPH, X, X, X, **options)
    assert {explanation.backend, *explanation.others} == set(BACKENDS)
    for name, reason in explanation.others.items():
        if "would run" in reason:
            assert explain(GRAPH, X, X, X, backend=name, **options).backend == name
        else:
            with pytest.raises(BackendError, match="cannot run"):
                explain(GRAPH, X, X, X, backend=name, **options)
            with pytest.raises(BackendError):
                attend(GRAPH, X, X, X, backend=name, **options)


def test_it_reads_well() -> None:
    text = str(explain(GRAPH, X, X, X, backend="gather", need_weights=True))
    first, second, *rest = text.splitlines()
    assert first.startswith("sddmm -> segment_softmax -> spmm by 'gather' (gather, run-wise reductions")
    assert "need_weights" in second
    assert any(line.startswith("  not 'reference': 'gather' was asked for") for line in rest)


def test_under_autocast_it_is_the_call_that_is_cast() -> None:
    half = X.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(GRAPH, X, half, half).dtype == torch.bfloat16
        assert explain(GRAPH, X, half, half).operations == ("csr_attention",)
        assert explain(GRAPH, None, None, half, score=READY).operations == ("segment_softmax", "spmm")


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="backend must be 'auto' or one of"):
        explain(GRAPH, X, X, X, backend="fastest")
    with pytest.raises(ArgumentError, match="q must be"):
        explain(GRAPH, X[:1], X, X)


def test_list_backends() -> None:
    table = graphattn.list_backends()
    assert set(table) == set(BACKENDS)
    assert table["reference"] is None and table["gather"] is None
    assert all(reason is None or isinstance(reason, str) for reason in table.values())
