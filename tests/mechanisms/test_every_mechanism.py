"""What every mechanism of the table must do."""

from __future__ import annotations

import io

import pytest
import torch

from graphattn import list_mechanisms, patterns
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import MECHANISMS, Mechanism
from graphattn.testing import check_mechanism, random_graph

WIDTH, HEADS = 8, 2
EVERY = pytest.mark.parametrize("name", MECHANISMS.names())


@EVERY
def test_equivariance_batches_and_finite_gradients(name: str) -> None:
    check_mechanism(name, width=WIDTH, heads=HEADS)


def test_check_mechanism_finds_one_that_looks_at_positions() -> None:
    class Wrong(Mechanism):
        def forward(
            self, x: torch.Tensor, graph: TokenGraph, edge: torch.Tensor | None = None
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            return x * torch.arange(x.shape[0])[:, None], None

    with pytest.raises(AssertionError, match="permutation"):
        check_mechanism(Wrong(), width=WIDTH, heads=HEADS)


@EVERY
def test_it_is_a_mechanism_that_learns(name: str) -> None:
    module = MECHANISMS.get(name)(WIDTH, HEADS, attention_dropout=0.2, dropout=0.2)
    assert isinstance(module, Mechanism)
    graph = random_graph(1, "self_loops")
    out, edge = module(torch.randn(graph.num_tokens, WIDTH), graph)
    assert out.shape == (graph.num_tokens, WIDTH) and edge is None
    out.square().sum().backward()
    for key, parameter in module.named_parameters():
        if ".predictor." in f".{key}":  # learns by itself: no gradient goes through a choice
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key


@EVERY
def test_swapped_arguments_are_told(name: str) -> None:
    graph, x = patterns.complete(4), torch.randn(4, WIDTH)
    names = [name] if name == "ssa" else [name, "ssa"]  # alone, and inside a mechanism that draws
    for module in (
        MECHANISMS.get(each)(WIDTH, HEADS, **({"attention": name} if each != name else {})) for each in names
    ):
        with pytest.raises(ArgumentTypeError, match="graph must be a TokenGraph, got Tensor"):
            module(graph, x)  # type: ignore[arg-type]
        with pytest.raises(ArgumentTypeError, match="graph must be a TokenGraph, got Tensor"):
            module(x, graph.edge_index)
        with pytest.raises(ArgumentTypeError, match=r"x must be a floating tensor .*got list"):
            module(x.tolist(), graph)
        with pytest.raises(ArgumentTypeError, match=r"x must be a floating tensor .*got torch.int64"):
            module(x.long(), graph)


@EVERY
def test_dropout_follows_the_global_seed_and_stops_in_evaluation(name: str) -> None:
    module = MECHANISMS.get(name)(WIDTH, HEADS, attention_dropout=0.5)
    graph = random_graph(1, "dense")
    x = torch.randn(graph.num_tokens, WIDTH)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(module(x, graph)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    module.eval()
    assert torch.equal(module(x, graph)[0], module(x, graph)[0])


@EVERY
def test_state_dict_round_trip(name: str) -> None:
    make, graph = MECHANISMS.get(name), random_graph(1, "hub")
    first, second = make(WIDTH, HEADS).eval(), make(WIDTH, HEADS).eval()
    x = torch.randn(graph.num_tokens, WIDTH)
    assert not torch.equal(first(x, graph)[0], second(x, graph)[0])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(x, graph)[0], second(x, graph)[0])


@EVERY
def test_leading_dimensions_share_the_graph(name: str) -> None:
    module, graph = MECHANISMS.get(name)(WIDTH, HEADS).eval(), patterns.grid(3, 4)
    x = torch.randn(2, 12, WIDTH)
    out, _ = module(x, graph)
    torch.testing.assert_close(out, torch.stack([module(row, graph)[0] for row in x]))


@EVERY
def test_a_graph_for_each_batch_entry(name: str) -> None:
    """Entry by entry what the mechanism makes of that graph alone; graphs for heads or too few are refused."""
    torch.manual_seed(0)
    module = MECHANISMS.get(name)(WIDTH, HEADS).double().eval()
    graphs = [patterns.grid(3, 4), patterns.window(12, 2), patterns.hubs(12, 1)]
    x = torch.randn(3, 12, WIDTH, dtype=torch.float64)
    out = module(x, TokenGraph.stack(graphs))[0]
    alone = torch.stack([module(row, graph)[0] for row, graph in zip(x, graphs, strict=True)])
    torch.testing.assert_close(out, alone, atol=1e-10, rtol=0)
    with pytest.raises(ArgumentError):
        module(x[:2], TokenGraph.stack(graphs))


@EVERY
def test_autocast_and_bfloat16(name: str) -> None:
    module, graph = MECHANISMS.get(name)(WIDTH, HEADS).eval(), random_graph(1, "hub")
    x = torch.randn(graph.num_tokens, WIDTH)
    exact = module(x, graph)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(x, graph)[0]
    half = module.bfloat16()(x.bfloat16(), graph)[0]
    for got in (mixed, half):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), exact, rtol=0.05, atol=0.05)


@EVERY
def test_bad_arguments(name: str) -> None:
    with pytest.raises(ArgumentError, match="width must be a positive multiple of heads, got width=8, heads=3"):
        MECHANISMS.get(name)(8, 3)
    module, graph = MECHANISMS.get(name)(WIDTH, HEADS), random_graph(1)
    with pytest.raises(ArgumentError, match="x must be"):
        module(torch.zeros(graph.num_tokens + 1, WIDTH), graph)
    with pytest.raises(ArgumentError, match="x must be"):
        module(torch.zeros(graph.num_tokens, WIDTH + 1), graph)


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_edge_rows_that_do_not_fit_are_told(name: str, training: bool) -> None:
    make = MECHANISMS.get(name)
    try:
        module = make(WIDTH, HEADS, WIDTH).train(training)
    except ArgumentError:
        return  # takes no edge rows
    for graph in (random_graph(1, "sparse"), patterns.complete(5)):
        x, edges = torch.randn(graph.num_tokens, WIDTH), graph.num_edges
        module(x, graph, torch.randn(edges, WIDTH))
        for rows, width in ((edges - 1, WIDTH), (edges + 1, WIDTH), (edges, WIDTH + 1)):
            with pytest.raises(ArgumentError, match="edge"):
                module(x, graph, torch.randn(rows, width))


def test_the_list() -> None:
    assert list_mechanisms() == MECHANISMS.names() == sorted(MECHANISMS.names())
    assert "graph_transformer" in list_mechanisms()
    with pytest.raises(ArgumentError, match="unknown mechanism 'graph_tranformer'; did you mean 'graph_transformer'"):
        MECHANISMS.get("graph_tranformer")
