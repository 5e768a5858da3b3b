"""Bad arguments of attend: one error each, which names the argument, what was expected and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphattn.attention import attend, draw_seed, edge_weights, propagate
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.testing import random_graph

GRAPH = random_graph(0, "sparse", bipartite=True)
T, S, E, H, D = GRAPH.num_targets, GRAPH.num_sources, GRAPH.num_edges, 2, 4
GOOD: dict[str, Any] = {"q": torch.zeros(T, H, D), "k": torch.zeros(S, H, D), "v": torch.zeros(S, H, D)}
READY: dict[str, Any] = {"q": None, "k": None, "score": torch.zeros(E, H)}
SEED = torch.tensor([1, 2])

CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "graph": ({"graph": GRAPH.edge_index}, ArgumentTypeError, "graph must be a TokenGraph, got Tensor"),
    "graph-device": ({"graph": GRAPH.to("meta")}, ArgumentError, "graph must be on the device of q, cpu, got meta"),
    "q-rows": ({"q": torch.zeros(S, H, D)}, ArgumentError, f"q must be \\[..., {T}, H, D\\] for {T} targets"),
    "k-rows": ({"k": torch.zeros(T, H, D)}, ArgumentError, f"k must be \\[..., {S}, H, D\\] for {S} sources"),
    "v-rows": ({"v": torch.zeros(T, H, D)}, ArgumentError, f"v must be \\[..., {S}, H, D\\]"),
    "q-dims": ({"q": torch.zeros(T, D)}, ArgumentError, "q must be"),
    "no-channels": (
        {"q": torch.zeros(T, H, 0), "k": torch.zeros(S, H, 0)},
        ArgumentError,
        "q and k must have at least one channel",
    ),
    "q-missing": ({"q": None}, ArgumentError, "q and k are needed"),
    "v-missing": ({"v": None}, ArgumentTypeError, "v must be a floating tensor"),
    "q-dtype": ({"q": torch.zeros(T, H, D).int()}, ArgumentTypeError, "q must be a floating tensor, got torch.int32"),
    "k-dtype": ({"k": torch.zeros(S, H, D).double()}, ArgumentTypeError, "k must have the dtype and device of q"),
    "v-dtype": ({"v": torch.zeros(S, H, D).double()}, ArgumentTypeError, "v must have the dtype and device of q"),
    "v-device": (
        {"v": torch.zeros(S, H, D, device="meta")},
        ArgumentError,
        "v must be on the device of q, cpu, got meta",
    ),
    "k-device": (
        {"k": torch.zeros(S, H, D, device="meta")},
        ArgumentTypeError,
        "k must have the dtype and device of q.*on meta",
    ),
    "k-heads": ({"k": torch.zeros(S, H + 1, D)}, ArgumentError, "q and k must agree"),
    "v-heads": ({"v": torch.zeros(S, H + 1, D)}, ArgumentError, "v must have the leading dimensions and heads of q"),
    "v-leading": ({"v": torch.zeros(3, S, H, D)}, ArgumentError, "v must have the leading dimensions"),
    "bias-rows": (
        {"edge_bias": torch.zeros(E + 1)},
        ArgumentError,
        f"edge_bias must be \\[E\\], \\[E, H\\], with E = {E}",
    ),
    "bias-scalar": ({"edge_bias": torch.zeros(())}, ArgumentError, "edge_bias must be"),
    "bias-heads": ({"edge_bias": torch.zeros(E, H + 1)}, ArgumentError, "and H = 2 heads"),
    "bias-dtype": ({"edge_bias": torch.zeros(E).long()}, ArgumentTypeError, "edge_bias must have the dtype"),
    "bias-type": ({"edge_bias": 1.0}, ArgumentTypeError, "edge_bias must be a tensor.*got float"),
    "gate-rows": (
        {"edge_gate": torch.zeros(E + 1, H, D)},
        ArgumentError,
        "edge_gate must be \\[E, D\\], \\[E, H, D\\]",
    ),
    "gate-channels": ({"edge_gate": torch.zeros(E, H, D + 1)}, ArgumentError, "edge_gate"),
    "gate-dtype": ({"edge_gate": torch.zeros(E, H, D).double()}, ArgumentTypeError, "edge_gate must have the dtype"),
    "clamp": ({"clamp": 0.0}, ArgumentError, "clamp must be positive, got 0.0"),
    "clamp-steps": ({"clamp": -1.0, "need_weights": True}, ArgumentError, "clamp must be positive, got -1.0"),
    "no-seed": ({"dropout_p": 0.5}, ArgumentError, "dropout_p > 0 needs dropout_seed"),
    "no-seed-steps": ({"dropout_p": 0.5, "need_weights": True}, ArgumentError, "dropout_p > 0 needs dropout_seed"),
    "dropout-p": ({"dropout_p": 1.5, "dropout_seed": SEED}, ArgumentError, "dropout_p must lie in \\[0, 1\\), got 1.5"),
    "seed-type": (
        {"dropout_p": 0.5, "dropout_seed": 7},
        ArgumentTypeError,
        "dropout_seed must be an int64 tensor.*got int",
    ),
    "seed-device": (
        {"dropout_p": 0.5, "dropout_seed": SEED.to("meta")},
        ArgumentError,
        "dropout_seed must be on the device",
    ),
    "lse": (
        {"need_lse": True, "normalizer": "sigmoid"},
        ArgumentError,
        "need_lse needs the softmax normaliser, got Sigmoid",
    ),
    "ready-and-q": ({"score": torch.zeros(E, H)}, ArgumentError, "q and k must be None where score is a ready"),
    "ready-rows": ({**READY, "score": torch.zeros(E + 1, H)}, ArgumentError, "score must be \\[E\\], \\[E, H\\]"),
    "ready-dtype": ({**READY, "score": torch.zeros(E, H).long()}, ArgumentTypeError, "score must be a floating tensor"),
    "ready-device": (
        {**READY, "score": torch.zeros(E, H, device="meta")},
        ArgumentError,
        "score must be on the device of the graph, cpu, got meta",
    ),
    "ready-v-device": (
        {**READY, "v": torch.zeros(S, H, D, device="meta")},
        ArgumentError,
        "v must be on the device of score",
    ),
    "ready-bias": (
        {**READY, "edge_bias": torch.zeros(E).double()},
        ArgumentTypeError,
        "edge_bias must have the dtype and device of score",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_attend(case: str) -> None:
    change, error, text = CASES[case]
    with pytest.raises(error, match=text):
        attend(**{"graph": GRAPH, **GOOD, **change})


def test_edge_weights_and_propagate() -> None:
    with pytest.raises(ArgumentError, match="q must be"):
        edge_weights(GRAPH, torch.zeros(S, H, D), torch.zeros(S, H, D))
    with pytest.raises(ArgumentError, match="clamp must be positive"):
        edge_weights(GRAPH, GOOD["q"], GOOD["k"], clamp=-2.0)
    with pytest.raises(ArgumentError, match="weights must be \\[E\\], \\[E, H\\]"):
        propagate(GRAPH, torch.zeros(E + 1), GOOD["v"])
    with pytest.raises(ArgumentError, match="v must be"):
        propagate(GRAPH, torch.zeros(E), torch.zeros(T, H, D))
    with pytest.raises(ArgumentTypeError, match="graph must be a TokenGraph"):
        propagate(GRAPH.edge_index, torch.zeros(E), GOOD["v"])
    with pytest.raises(ArgumentTypeError, match="weights must be a floating tensor, got torch.int64"):
        propagate(GRAPH, torch.zeros(E).long(), GOOD["v"])


def test_draw_seed() -> None:
    seed = draw_seed(torch.Generator().manual_seed(0))
    assert seed.dtype == torch.int64 and seed.shape == (2,)
    assert torch.equal(seed, draw_seed(torch.Generator().manual_seed(0)))
    torch.manual_seed(3)
    first = draw_seed()
    assert not torch.equal(first, draw_seed())
    torch.manual_seed(3)
    assert torch.equal(first, draw_seed(device="cpu"))
