"""The helpers that other tests rest on: graphs are what they promise, and assertions can fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.testing import (
    GRAPH_KINDS,
    LiveMemory,
    assert_backends_equal,
    assert_within_budget,
    eager_attention,
    random_graph,
)

SEEDS = pytest.mark.parametrize("seed", range(5))


# --- graphs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GRAPH_KINDS)
@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
def test_the_seed_decides(kind: str, bipartite: bool) -> None:
    graphs = [random_graph(seed, kind, bipartite=bipartite) for seed in (1, 1)]
    assert torch.equal(graphs[0].edge_index, graphs[1].edge_index)
    assert graphs[0].is_square != bipartite
    if kind not in ("one_token", "no_edges"):
        assert not torch.equal(graphs[0].edge_index, random_graph(2, kind, bipartite=bipartite).edge_index)


@SEEDS
@pytest.mark.parametrize("bipartite", [False, True], ids=["square", "bipartite"])
def test_each_kind_has_what_it_is_for(seed: int, bipartite: bool) -> None:
    def make(kind: str) -> TokenGraph:
        return random_graph(seed, kind, bipartite=bipartite)

    hub = make("hub")
    assert hub.in_degree.max() == hub.num_sources and hub.out_degree.max() == hub.num_targets
    empty = make("empty_rows").in_degree
    assert (empty == 0).any() and (empty > 0).any() and empty[-1] == 0
    assert make("duplicates").has_duplicates and not make("dense").has_duplicates
    loops = make("self_loops").edge_index
    n = make("self_loops").num_targets
    assert set(loops[0][loops[0] == loops[1]].tolist()) == set(range(n))
    assert make("one_token").num_targets == 1 and make("one_token").num_edges > 0
    assert make("no_edges").num_edges == 0 and make("no_edges").num_targets > 1
    batch = make("batch")
    assert batch.num_members == 4 and len(batch.unbatch()) == 4
    assert batch.unbatch()[1].num_targets == 1 and batch.unbatch()[2].num_edges == 0


def test_edges_come_in_no_order() -> None:
    graph = random_graph(0, "dense")
    assert graph.edge_id is not None and (graph.edge_id.diff() < 0).any()


def test_unknown_kind() -> None:
    with pytest.raises(ArgumentError, match="kind must be one of .*got 'tree'"):
        random_graph(0, "tree")


# --- assertions -----------------------------------------------------------------------------------------------


def test_the_oracle_by_hand() -> None:
    """Target 0 reads sources 0 and 1 with scores log 3 and 0."""
    graph = TokenGraph.from_edge_index(torch.tensor([[0, 1], [0, 0]]), 2)
    q, k = torch.tensor([[[1.0]], [[1.0]]]), torch.tensor([[[3.0]], [[1.0]]]).log()
    v = torch.tensor([[[4.0]], [[8.0]]])
    torch.testing.assert_close(eager_attention(graph, q, k, v), torch.tensor([[[5.0]], [[0.0]]]))


def test_the_budget_is_relative_to_the_plain_run() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    plain = (exact + 0.01).float()
    assert_within_budget((exact - 0.015).float(), plain, exact)
    assert_within_budget(exact.float(), plain, exact)
    with pytest.raises(AssertionError, match="gradient: error 0.03 exceeds 2 x 0.01"):
        assert_within_budget((exact - 0.03).float(), plain, exact, what="gradient")
    with pytest.raises(AssertionError, match="not finite"):
        assert_within_budget(torch.tensor([1.0, float("nan")]), plain, exact)
    with pytest.raises(AssertionError, match="dtype torch.float16, expected torch.float32"):
        assert_within_budget(exact.half(), plain, exact)
    with pytest.raises(AssertionError, match="shape"):
        assert_within_budget(exact[:1].float(), plain, exact)


def test_the_budget_has_room_for_two_roundings() -> None:
    exact = torch.tensor([1.0], dtype=torch.float64)
    step = torch.finfo(torch.bfloat16).eps
    assert_within_budget((exact + step).bfloat16(), exact.bfloat16(), exact)
    with pytest.raises(AssertionError):
        assert_within_budget((exact + 4 * step).bfloat16(), exact.bfloat16(), exact)


def test_backends_that_differ_are_found() -> None:
    x = torch.randn(3, dtype=torch.float64)
    held = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor, backend: str) -> Tensor:
        return 2 * x if backend == "gather" else 2 * x + 1e-9

    def slope(x: Tensor, backend: str) -> Tensor:
        return x * x.detach() if backend == "gather" else x * x

    def parameter(x: Tensor, backend: str) -> Tensor:
        return x * (held.detach() if backend == "gather" else held)

    with pytest.raises(AssertionError, match="output 0"):
        assert_backends_equal(value, x)
    with pytest.raises(AssertionError, match="gradient of input 0"):
        assert_backends_equal(slope, x)
    with pytest.raises(AssertionError, match="gradient of input 1"):
        assert_backends_equal(parameter, x, parameters=[held])
    assert_backends_equal(value, x, tolerance=1e-6)
    assert_backends_equal(lambda x, none, backend: x if none is None else 0 * x, x, None)


def test_live_memory_is_of_what_was_made_inside() -> None:
    outside = torch.zeros(100)
    with LiveMemory() as memory:
        outside.view(10, 10).add_(1)
        torch.add(outside, 1, out=outside)
        assert memory.now == memory.peak == 0 and memory.sizes == []
        made = outside + 1
        part = made[:5]
        del made
        assert memory.sizes == [400]  # the storage is there as long as a view of it
        del part
    assert memory.now == 0 and memory.peak == 400
