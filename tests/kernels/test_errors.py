"""Bad arguments: one error each, which names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from graphattn.testing import random_graph
from graphattn_kernels import (
    SourceLists,
    Structure,
    block_attention,
    csr_attention,
    list_attention,
    rank_one_attention,
    relu_attention,
    sddmm,
    segment_softmax,
    segment_sum,
    spmm,
    spread,
)
from graphattn_kernels.backends import BACKENDS, choose, status
from graphattn_kernels.blocks import from_mask
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

GRAPH = random_graph(0, "sparse", bipartite=True).structure
T, S, E, H, D = GRAPH.num_targets, GRAPH.num_sources, GRAPH.num_edges, 2, 4
GOOD: dict[str, Any] = {"q": torch.zeros(T, H, D), "k": torch.zeros(S, H, D), "v": torch.zeros(S, H, D)}
SEED = torch.tensor([1, 2])


def meta(structure: Structure) -> Structure:
    return Structure(*(type(v)(*(None if x is None else x.to("meta") for x in v)) for v in structure))


CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "q-rows": ({"q": torch.zeros(T + 1, H, D)}, ArgumentError, f"q .*each target \\({T}\\)"),
    "k-rows": ({"k": torch.zeros(T, H, D)}, ArgumentError, f"k .*each source \\({S}\\)"),
    "v-dims": ({"v": torch.zeros(S, H)}, ArgumentError, "v must have 3 dimensions"),
    "q-type": ({"q": [[1.0]]}, ArgumentTypeError, "q must be a tensor, got list"),
    "q-dtype": ({"q": torch.zeros(T, H, D).long()}, ArgumentTypeError, "q must be a floating"),
    "k-dtype": ({"k": torch.zeros(S, H, D).double()}, ArgumentTypeError, "k must have the dtype"),
    "v-dtype": ({"v": torch.zeros(S, H, D).half()}, ArgumentTypeError, "v must have the dtype"),
    "no-channels": (
        {"q": torch.zeros(T, H, 0), "k": torch.zeros(S, H, 0)},
        ArgumentError,
        "q must have at least one channel",
    ),
    "k-channels": ({"k": torch.zeros(S, H, D + 1)}, ArgumentError, "k must have the heads and channels"),
    "v-heads": ({"v": torch.zeros(S, H + 1, D)}, ArgumentError, "v must have the heads of q, 2, got 3"),
    "bias-rows": ({"edge_bias": torch.zeros(E + 1, H)}, ArgumentError, f"edge_bias .*each edge \\({E}\\)"),
    "bias-dims": ({"edge_bias": torch.zeros(E)}, ArgumentError, "edge_bias must have 2 dimensions"),
    "bias-heads": ({"edge_bias": torch.zeros(E, H + 1)}, ArgumentError, "edge_bias must be \\[E, 2\\]"),
    "bias-type": ({"edge_bias": [1.0]}, ArgumentTypeError, "edge_bias must be a tensor, got list"),
    "gate-type": ({"edge_gate": 1.0}, ArgumentTypeError, "edge_gate must be a tensor, got float"),
    "att-type": ({"att": [1.0], "negative_slope": 0.2}, ArgumentTypeError, "att must be a tensor, got list"),
    "gate-channels": ({"edge_gate": torch.zeros(E, H, 1)}, ArgumentError, "edge_gate must be"),
    "k-device": ({"k": torch.zeros(S, H, D, device="meta")}, ArgumentTypeError, "k .*device of q"),
    "clamp-zero": ({"clamp": 0.0}, ArgumentError, "clamp must be positive, got 0.0"),
    "clamp-negative": ({"clamp": -1.0}, ArgumentError, "clamp must be positive, got -1.0"),
    "dropout-one": ({"dropout_p": 1.0, "dropout_seed": SEED}, ArgumentError, "dropout_p .*got 1.0"),
    "dropout-negative": ({"dropout_p": -0.1, "dropout_seed": SEED}, ArgumentError, "dropout_p"),
    "no-seed": ({"dropout_p": 0.5}, ArgumentError, "needs dropout_seed"),
    "seed-type": ({"dropout_p": 0.5, "dropout_seed": 3}, ArgumentTypeError, "dropout_seed must be an int64"),
    "seed-shape": ({"dropout_p": 0.5, "dropout_seed": torch.tensor([1])}, ArgumentTypeError, "\\[2\\]"),
    "seed-dtype": ({"dropout_p": 0.5, "dropout_seed": SEED.float()}, ArgumentTypeError, "int64"),
    "backend": ({"backend": "cuda"}, ArgumentError, "backend must be 'auto' or one of .*gather"),
}


@pytest.mark.parametrize("case", CASES)
def test_csr_attention(case: str) -> None:
    change, error, text = CASES[case]
    with pytest.raises(error, match=text):
        csr_attention(GRAPH, **{**GOOD, **change})


def test_the_graph_must_be_on_the_device_of_the_rows() -> None:
    with pytest.raises(ArgumentError, match="graph must be on the device of q, cpu, got meta"):
        csr_attention(meta(GRAPH), **GOOD)


SPARSE: dict[str, tuple[Callable[[], object], str]] = {
    "segment_sum": (lambda: segment_sum(GRAPH, torch.zeros(E + 1)), "rows .*each edge"),
    "segment_sum-dims": (lambda: segment_sum(GRAPH, torch.tensor(1.0)), r"rows .*each edge .*got shape \[\]"),
    "spread-dims": (lambda: spread(GRAPH, torch.tensor(1.0)), r"rows .*each target .*got shape \[\]"),
    "spread": (lambda: spread(GRAPH, torch.zeros(T + 1, 2)), "rows .*each target"),
    "sddmm-rows": (lambda: sddmm(GRAPH, torch.zeros(S, 1, 2), torch.zeros(S, 1, 2)), "a .*each target"),
    "sddmm-heads": (lambda: sddmm(GRAPH, torch.zeros(T, 1, 2), torch.zeros(S, 2, 2)), "a and b must share"),
    "spmm-heads": (lambda: spmm(GRAPH, torch.zeros(E, 3), torch.zeros(S, 2, 2)), "weights must be"),
    "spmm-rows": (lambda: spmm(GRAPH, torch.zeros(E, 2), torch.zeros(T, 2, 2)), "values .*each source"),
    "softmax-dims": (lambda: segment_softmax(GRAPH, torch.zeros(E)), "scores must have 2 dim"),
    "softmax-rows": (lambda: segment_softmax(GRAPH, torch.zeros(E + 2, 2)), "scores .*each edge"),
}


@pytest.mark.parametrize("case", SPARSE)
def test_sparse_operations(case: str) -> None:
    call, text = SPARSE[case]
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


@pytest.mark.parametrize("scale", [None, 1.0])
def test_no_channels_in_dense_operations(scale: float | None) -> None:
    q, k, v = torch.zeros(8, H, 0), torch.zeros(8, H, 0), torch.zeros(8, H, D)
    blocks = from_mask(torch.ones(1, 8, 8, dtype=torch.bool), 32, 32)
    lists = SourceLists(torch.zeros(1, 1, 1).int(), None, None, 8, 8, 8, "", causal=False, own=False, disjoint=False)
    for call in (
        lambda: relu_attention(q, k, v, scale=scale),
        lambda: block_attention(blocks, q, k, v, scale=scale, backend="reference"),
        lambda: list_attention(lists, q, k, v, scale=scale),
    ):
        with pytest.raises(ArgumentError, match=r"q must have at least one channel, got shape \[8, 2, 0\]"):
            call()
    assert torch.equal(rank_one_attention(q, k, v, scale=scale), torch.zeros(H, D))  # no weight is positive
