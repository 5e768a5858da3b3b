"""Bad arguments: one error each, which names the argument, what was expected and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphattn.testing import random_graph
from graphattn_kernels import Structure, csr_attention, sddmm, segment_softmax, segment_sum, spmm, spread
from graphattn_kernels.backends import BACKENDS, choose, status
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

GRAPH = random_graph(0, "sparse", bipartite=True).structure
T, S, E, H, D = GRAPH.num_targets, GRAPH.num_sources, GRAPH.num_edges, 2, 4
GOOD: dict[str, Any] = {"q": torch.zeros(T, H, D), "k": torch.zeros(S, H, D), "v": torch.zeros(S, H, D)}
SEED = torch.tensor([1, 2])


def meta(structure: Structure) -> Structure:
    return Structure(*(type(v)(*(None if x is None else x.to("meta") for x in v)) for v in structure))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        pytest.param({"q": torch.zeros(T + 1, H, D)}, ArgumentError, f"q .*each target \\({T}\\)", id="q-rows"),
        pytest.param({"k": torch.zeros(T, H, D)}, ArgumentError, f"k .*each source \\({S}\\)", id="k-rows"),
        pytest.param({"v": torch.zeros(S, H)}, ArgumentError, "v must have 3 dimensions", id="v-dims"),
        pytest.param({"q": [[1.0]]}, ArgumentTypeError, "q must be a tensor, got list", id="q-type"),
        pytest.param({"q": torch.zeros(T, H, D).long()}, ArgumentTypeError, "q must be a floating", id="q-dtype"),
        pytest.param({"k": torch.zeros(S, H, D).double()}, ArgumentTypeError, "k must have the dtype", id="k-dtype"),
        pytest.param({"v": torch.zeros(S, H, D).half()}, ArgumentTypeError, "v must have the dtype", id="v-dtype"),
        pytest.param({"k": torch.zeros(S, H, D + 1)}, ArgumentError, "k must have the heads and channels", id="k-channels"),
        pytest.param({"v": torch.zeros(S, H + 1, D)}, ArgumentError, "v must have the heads of q, 2, got 3", id="v-heads"),
        pytest.param({"edge_bias": torch.zeros(E + 1, H)}, ArgumentError, f"edge_bias .*each edge \\({E}\\)", id="bias-rows"),
        pytest.param({"edge_bias": torch.zeros(E)}, ArgumentError, "edge_bias must have 2 dimensions", id="bias-dims"),
        pytest.param({"edge_bias": torch.zeros(E, H + 1)}, ArgumentError, "edge_bias must be \\[E, 2\\]", id="bias-heads"),
        pytest.param({"edge_gate": torch.zeros(E, H, 1)}, ArgumentError, "edge_gate must be", id="gate-channels"),
        pytest.param({"k": torch.zeros(S, H, D, device="meta")}, ArgumentTypeError, "k .*device of q", id="k-device"),
        pytest.param({"clamp": 0.0}, ArgumentError, "clamp must be positive, got 0.0", id="clamp-zero"),
        pytest.param({"clamp": -1.0}, ArgumentError, "clamp must be positive, got -1.0", id="clamp-negative"),
        pytest.param({"dropout_p": 1.0, "dropout_seed": SEED}, ArgumentError, "dropout_p .*got 1.0", id="dropout-one"),
        pytest.param({"dropout_p": -0.1, "dropout_seed": SEED}, ArgumentError, "dropout_p", id="dropout-negative"),
        pytest.param({"dropout_p": 0.5}, ArgumentError, "needs dropout_seed", id="no-seed"),
        pytest.param(
            {"dropout_p": 0.5, "dropout_seed": 3}, ArgumentTypeError, "dropout_seed must be an int64", id="seed-type"
        ),
        pytest.param(
            {"dropout_p": 0.5, "dropout_seed": torch.tensor([1])}, ArgumentTypeError, "\\[2\\]", id="seed-shape"
        ),
        pytest.param(
            {"dropout_p": 0.5, "dropout_seed": SEED.float()}, ArgumentTypeError, "int64", id="seed-dtype"
        ),
        pytest.param({"backend": "cuda"}, ArgumentError, "backend must be 'auto' or one of .*gather", id="backend"),
    ],
)  # fmt: skip
def test_csr_attention(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        csr_attention(GRAPH, **{**GOOD, **change})


def test_the_graph_must_be_on_the_device_of_the_rows() -> None:
    with pytest.raises(ArgumentError, match="graph must be on the device of q, cpu, got meta"):
        csr_attention(meta(GRAPH), **GOOD)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        pytest.param(lambda: segment_sum(GRAPH, torch.zeros(E + 1)), "rows .*each edge", id="segment_sum"),
        pytest.param(lambda: spread(GRAPH, torch.zeros(T + 1, 2)), "rows .*each target", id="spread"),
        pytest.param(lambda: sddmm(GRAPH, torch.zeros(S, 1, 2), torch.zeros(S, 1, 2)), "a .*each target", id="sddmm-rows"),
        pytest.param(lambda: sddmm(GRAPH, torch.zeros(T, 1, 2), torch.zeros(S, 2, 2)), "a and b must share", id="sddmm-heads"),
        pytest.param(lambda: spmm(GRAPH, torch.zeros(E, 3), torch.zeros(S, 2, 2)), "weights must be", id="spmm-heads"),
        pytest.param(lambda: spmm(GRAPH, torch.zeros(E, 2), torch.zeros(T, 2, 2)), "values .*each source", id="spmm-rows"),
        pytest.param(lambda: segment_softmax(GRAPH, torch.zeros(E)), "scores must have 2 dim", id="softmax-dims"),
        pytest.param(lambda: segment_softmax(GRAPH, torch.zeros(E + 2, 2)), "scores .*each edge", id="softmax-rows"),
    ],
)  # fmt: skip
def test_sparse_operations(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()


@pytest.mark.parametrize("function", [segment_sum, spread, segment_softmax])
def test_integers_are_refused(function: Any) -> None:
    rows = torch.zeros(T if function is spread else E, H, dtype=torch.int64)
    with pytest.raises(ArgumentTypeError, match="must be a floating tensor, got torch.int64"):
        function(GRAPH, rows)


def test_choice_of_backend() -> None:
    assert choose("auto") in BACKENDS
    assert all(choose(name) == name for name in ("reference", "gather"))
    assert set(status()) == set(BACKENDS)
    assert status()["reference"] is None and status()["gather"] is None
    with pytest.raises(ArgumentError, match="got 'dense'"):
        choose("dense")
