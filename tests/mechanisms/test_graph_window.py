"""The window as a mechanism, and how windows are written and scheduled."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

import graphattn.mechanisms.graph_window as module
from graphattn import TokenGraph, patterns
from graphattn.errors import ArgumentError
from graphattn.graph.graph_window import GraphWindow
from graphattn.graph.rules import Causal
from graphattn.mechanisms import GraphWindowAttention, Window, WindowSchedule
from graphattn.models.sequence import CausalTransformer
from graphattn.testing import random_graph


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_token_reads_the_ball_around_it(hops: int) -> None:
    graph = nx.random_labeled_tree(14, seed=1)
    edges = torch.tensor(list(graph.to_directed().edges)).T
    mechanism = GraphWindowAttention(8, 2, hops=hops).double()
    x = torch.randn(14, 8, dtype=torch.float64)
    tokens = TokenGraph.from_edge_index(edges, 14)
    jacobian = torch.autograd.functional.jacobian(lambda x: mechanism(x, tokens)[0], x).abs().sum((1, 3)) > 0
    far = dict(nx.all_pairs_shortest_path_length(graph))
    assert jacobian.tolist() == [[far[t][s] <= hops for s in range(14)] for t in range(14)]


def test_evaluation_may_have_another_window() -> None:
    mechanism = GraphWindowAttention(8, 2, hops=1, eval_hops=3)
    graph = random_graph(0)
    x = torch.randn(graph.num_tokens, 8)
    other = GraphWindowAttention(8, 2, hops=3)
    other.load_state_dict(mechanism.state_dict())
    assert torch.equal(mechanism.eval()(x, graph)[0], other(x, graph)[0])
    assert not torch.equal(mechanism.train()(x, graph)[0], other(x, graph)[0])


def test_graphs_that_are_windows_are_taken_as_they_are_and_others_made_once() -> None:
    for graph in (patterns.causal(5), patterns.complete(5), patterns.blocks([0, 2, 5]), patterns.prefix(5, 2)):
        assert module._window(graph, 2) is graph
        assert torch.equal(graph.power(3).to_dense(), graph.to_dense())  # why: walks lead nowhere else
    graph = random_graph(1)
    assert module._window(graph, 2) is module._window(graph, 2) is not module._window(graph, 3)
    count = len(module._KNOWN)
    del graph
    import gc

    gc.collect()
    assert len(module._KNOWN) < count


def test_how_a_window_is_written() -> None:
    for text, window in (
        ("uni-2", Window(2)),
        ("bidi-0", Window(0, "bidi")),
        ("uni-all", Window()),
        ("bidi-3-node", Window(3, "bidi", "node")),
    ):
        assert Window.parse(text) == window and str(window) == text
    for text in ("uni", "2", "both-2", "uni--1", "uni-2-tree"):
        with pytest.raises(ArgumentError, match="a window is written 'uni-2'"):
            Window.parse(text)
    assert WindowSchedule().at(True) == Window(2) and WindowSchedule().at(False) == Window()


def test_a_window_of_a_batch() -> None:
    batch = {
        "node_of_token": torch.tensor([[0, -1, 1, 2, 3], [-1, 0, 1, -1, -1]]),
        "parents": torch.tensor([[-1, 0, 1, 0], [-1, 0, -1, -1]]),
        "nodes": torch.tensor([[4, 5, 6, 5], [4, 5, -1, -1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
    }
    for window in (Window(1), Window(1, "bidi"), Window(1, "bidi", "node")):
        graph = window.graph(batch)
        assert isinstance(graph, GraphWindow) and graph.padding == "left"
        expected = patterns.graph_window(
            *(batch["node_of_token"], batch["parents"], 1, window.direction),
            distance=window.distance,
            node=batch["nodes"],
            mask=batch["attention_mask"].bool(),
        )
        assert torch.equal(graph.to_dense(), expected.to_dense())
    assert bool(Window(1, "bidi", "node").graph(batch).to_dense()[0, 3, 4])  # 6 and 5: neighbours, though cousins
    batch.pop("attention_mask")
    assert type(Window(4).graph(batch, depth=2)) is Causal and type(Window().graph(batch)) is Causal


def test_in_a_causal_transformer() -> None:
    batch = {
        "node_of_token": torch.tensor([[-1, 0, -1, 1, 2, 3, -1]]),
        "parents": torch.tensor([[-1, 0, 1, 0]]),
    }
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    for attention in ("multihead", "graph_window"):
        model = CausalTransformer(10, 16, 2, 2, attention=attention).eval()
        causal = model(tokens)
        assert torch.equal(model(tokens, graph=Window(4).graph(batch, depth=2)), causal)
        windowed = model(tokens, graph=Window(1).graph(batch))
        assert torch.equal(windowed[:, :1], causal[:, :1]) and not torch.allclose(windowed[:, 4], causal[:, 4])
        # A later node token is read with "bidi" only.
        changed = tokens.clone()
        changed[0, 3] = 9
        for direction, same in (("uni", True), ("bidi", False)):
            graph = Window(1, direction).graph(batch)  # type: ignore[arg-type]
            assert torch.allclose(model(changed, graph=graph)[0, 1], model(tokens, graph=graph)[0, 1]) == same


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="edge_width must be None"):
        GraphWindowAttention(8, 2, 4)
    with pytest.raises(ArgumentError, match="hops must be 1 or more, got 0"):
        GraphWindowAttention(8, 2, hops=0)
    graph = random_graph(1)
    with pytest.raises(ArgumentError, match="edge must be None"):
        GraphWindowAttention(8, 2)(torch.zeros(graph.num_tokens, 8), graph, torch.zeros(3, 1))
