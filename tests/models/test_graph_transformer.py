"""The graph transformer as a whole: published sizes, symmetries, batches, inputs, compile and export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphattn import create_model
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.models.graph import GraphTransformer
from graphattn.testing import random_graph

Inputs = Callable[..., dict[str, Any]]
SMALL = {"width": 16, "heads": 4, "layers": 3}
# Every kind of input, and both kinds of prediction.
VARIANTS: dict[str, dict[str, Any]] = {
    "ids-node": {"in_vocab": 5},
    "features-pe-node": {"in_channels": 4, "pe_dim": 3, "norm": "layer"},
    "ids-edges-wl-mean": {"in_vocab": 5, "edge_vocab": 4, "wl_vocab": 7, "readout": "mean"},
    "columns-edges-sum": {"in_vocab": [5, 3], "edge_vocab": [4, 2], "readout": "sum", "residual": False},
    "features-edges-max": {"in_channels": 4, "edge_channels": 2, "readout": "max", "norm": "none"},
    "constant-edges-node": {"in_vocab": 5, "constant_edges": True},
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str) -> GraphTransformer:
    """In float64, in evaluation, with batch-norm statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = GraphTransformer(3, **SMALL, **VARIANTS[variant]).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


# --- sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        pytest.param("zinc", {"pe_dim": None}, 588_353, id="zinc"),
        pytest.param("zinc", {}, 588_929, id="zinc-laplacian"),
        pytest.param("zinc", {"pe_dim": None, "wl_vocab": 37}, 590_721, id="zinc-wl"),
        pytest.param("pattern", {"pe_dim": None}, 522_742, id="pattern"),
        pytest.param("pattern", {}, 522_982, id="pattern-laplacian"),
        pytest.param("pattern", {"pe_dim": None, "wl_vocab": 100}, 530_742, id="pattern-wl"),
        pytest.param("cluster", {"pe_dim": None}, 523_146, id="cluster"),
        pytest.param("cluster", {}, 524_026, id="cluster-laplacian"),
        pytest.param("cluster", {"pe_dim": None, "wl_vocab": 100}, 531_146, id="cluster-wl"),
    ],
)
def test_published_parameter_counts(name: str, options: dict[str, Any], count: int) -> None:
    model = create_model(f"graph_transformer_{name}", **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


# --- symmetries -----------------------------------------------------------------------------------------------


def permuted(batch: dict[str, Any], order: Tensor, edges: Tensor) -> dict[str, Any]:
    """Node n of the result is node order[n]; its edges are taken in the order ``edges``."""
    nodes = {key: None if batch[key] is None else batch[key][order] for key in ("x", "pe", "wl", "batch")}
    attributes = None if batch["edge_attr"] is None else batch["edge_attr"][edges]
    return {**batch, **nodes, "edge_index": order.argsort()[batch["edge_index"]][:, edges], "edge_attr": attributes}


@EVERY
def test_nodes_may_be_renumbered_and_edges_reordered(variant: str, inputs: Inputs) -> None:
    model = make(variant)
    graph = random_graph(2, "hub")
    batch = inputs(model, graph)
    out = model(**batch)
    moved = permuted(batch, order := torch.randperm(graph.num_tokens), torch.randperm(graph.num_edges))
    expected = out[order] if model.readout == "node" else out
    torch.testing.assert_close(model(**moved), expected, rtol=1e-9, atol=1e-9)


def joined(parts: list[dict[str, Any]], graphs: list[TokenGraph]) -> dict[str, Any]:
    batch = TokenGraph.batch(graphs)
    keys = ("x", "edge_attr", "pe", "wl")
    return {
        **{key: None if parts[0][key] is None else torch.cat([part[key] for part in parts]) for key in keys},
        "edge_index": batch.edge_index,
        "batch": batch.target_batch,
        "num_graphs": len(graphs),
    }


@EVERY
def test_a_batch_equals_its_members(variant: str, inputs: Inputs) -> None:
    model = make(variant)
    graphs = [random_graph(n, kind) for n, kind in enumerate(["hub", "no_edges", "one_token", "duplicates"])]
    parts = [inputs(model, graph, seed) for seed, graph in enumerate(graphs)]
    out = model(**joined(parts, graphs))
    alone = torch.cat([model(**part) for part in parts])
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mechanism", ["infsa", "sparsifiner"])
def test_a_batch_equals_its_members_where_mechanisms_look_at_whole_graphs(mechanism: str) -> None:
    torch.manual_seed(0)
    model = GraphTransformer(3, in_channels=4, **SMALL, mechanism=mechanism).double().eval()
    graphs = [random_graph(n, kind) for n, kind in enumerate(["hub", "no_edges", "one_token", "duplicates"])]
    rows = [torch.randn(graph.num_tokens, 4, dtype=torch.float64) for graph in graphs]
    alone = torch.cat([model(x, graph.edge_index) for x, graph in zip(rows, graphs, strict=True)])
    batch = TokenGraph.batch(graphs)
    out = model(torch.cat(rows), batch.edge_index, batch=batch.target_batch, num_graphs=4)
    torch.testing.assert_close(out, alone, rtol=1e-10, atol=1e-10)


def test_one_member_of_a_batch_cannot_change_another() -> None:
    """For random sizes and edges: replace one member by anything; the others' outputs keep their bits."""
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    model = make("ids-edges-wl-mean")

    @hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
    @hypothesis.given(
        sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4),
        densities=st.lists(st.floats(0, 1), min_size=4, max_size=4),
        victim=st.integers(0, 3),
        seed=st.integers(0, 2**16),
    )
    def check(sizes: list[int], densities: list[float], victim: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        victim %= len(sizes)

        def member(size: int, density: float) -> tuple[TokenGraph, dict[str, Any]]:
            target, source = (torch.rand(size, size, generator=random) < density).nonzero(as_tuple=True)
            ids = {
                "x": torch.randint(5, (size,), generator=random),
                "edge_attr": torch.randint(4, (len(source),), generator=random),
                "wl": torch.randint(7, (size,), generator=random),
                "pe": None,
            }
            return TokenGraph.from_edge_index(torch.stack([source, target]), size), ids

        members = [member(size, density) for size, density in zip(sizes, densities, strict=False)]
        changed = list(members)
        changed[victim] = member(sizes[victim] + 1, 0.7)
        results = [model(**joined([m[1] for m in ms], [m[0] for m in ms])) for ms in (members, changed)]
        others = [n for n in range(len(sizes)) if n != victim]
        torch.testing.assert_close(results[0][others], results[1][others], rtol=1e-12, atol=1e-12)
        whole = torch.cat([model(**joined([ids], [graph])) for graph, ids in members])
        torch.testing.assert_close(results[0], whole, rtol=1e-10, atol=1e-10)

    check()


def test_the_sign_of_the_encoding_matters_and_its_absolute_value_would_not(inputs: Inputs) -> None:
    """Invariant 6: a sign flip changes the output; the mean over all signs is invariant to one."""
    model = make("features-pe-node")
    batch = inputs(model)
    flip = torch.tensor([1.0, -1.0, 1.0])
    assert not torch.allclose(model(**batch), model(**{**batch, "pe": batch["pe"] * flip}))
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)

    def averaged(pe: Tensor) -> Tensor:
        return torch.stack([model(**{**batch, "pe": pe * s}) for s in signs]).mean(0)

    torch.testing.assert_close(averaged(batch["pe"]), averaged(batch["pe"] * flip))


# --- inputs ---------------------------------------------------------------------------------------------------


@EVERY
def test_every_input_counts(variant: str, inputs: Inputs) -> None:
    model = make(variant)
    model.head = nn.Identity()  # so narrow here that all of its ReLUs may be off
    graph = random_graph(2, "dense")
    batch, other = inputs(model, graph, 0), inputs(model, graph, 1)
    out = model(**batch)
    for key in ("x", "edge_attr", "pe", "wl"):
        if batch[key] is not None:
            assert not torch.equal(model(**{**batch, key: other[key]}), out), key


def test_a_token_graph_is_as_good_as_an_edge_index(inputs: Inputs) -> None:
    model = make("ids-edges-wl-mean")
    graph = random_graph(1, "batch")
    batch = inputs(model, graph)
    assert torch.equal(model(**{**batch, "edge_index": graph}), model(**batch))


def test_edge_attributes_are_ignored_by_a_model_without_edge_rows(inputs: Inputs) -> None:
    """PyG's batches bring them along whether the model wants them or not."""
    model = make("ids-node")
    batch = inputs(model)
    edge_attr = torch.zeros(batch["edge_index"].shape[1], dtype=torch.int64)
    assert torch.equal(model(**{**batch, "edge_attr": edge_attr}), model(**batch))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give either in_vocab or in_channels, got None and None"),
        ({"in_vocab": 3, "in_channels": 3}, "give either in_vocab or in_channels"),
        ({"in_vocab": 3, "edge_vocab": 3, "edge_channels": 3}, "give at most one of edge_vocab"),
        ({"in_vocab": 3, "readout": "median"}, "readout must be 'node' or one of .*got 'median'"),
        ({"in_vocab": 3, "norm": "group"}, "norm must be one of .*got 'group'"),
        ({"in_vocab": 3, "heads": 7}, "width must be a positive multiple of heads"),
        ({"in_vocab": 3, "mechanism": "attention"}, "unknown mechanism 'attention'"),
    ],
    ids=str,
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        GraphTransformer(3, **options)


@pytest.mark.parametrize(
    ("variant", "change", "text"),
    [
        ("ids-node", {"x": torch.zeros(13, 2)}, "x must hold integer ids .*got torch.float32"),
        ("ids-node", {"x": torch.zeros(13, 2).long()}, "x must have 1 id columns, got 2"),
        ("features-pe-node", {"x": torch.zeros(13, 9).double()}, "x must be floating \\[N, 4\\]"),
        ("features-pe-node", {"x": torch.zeros(13, 4).long()}, "x must be floating \\[N, 4\\]"),
        ("features-pe-node", {"pe": None}, "pe is needed by this model and was not given"),
        ("features-pe-node", {"pe": torch.zeros(1, 3)}, "pe must be \\[13, 3\\], a row for each node, got \\[1, 3\\]"),
        ("features-pe-node", {"pe": torch.zeros(13, 2)}, "pe must be \\[13, 3\\], .* got \\[13, 2\\]"),
        ("ids-edges-wl-mean", {"wl": None}, "wl is needed"),
        ("ids-edges-wl-mean", {"wl": torch.zeros(1).long()}, "wl must have one row for each node, 13"),
        ("ids-edges-wl-mean", {"edge_attr": None}, "edge_attr is needed"),
        ("ids-edges-wl-mean", {"edge_attr": torch.zeros(1).long()}, "edge_attr must have one row for each edge"),
        ("ids-edges-wl-mean", {"batch": torch.zeros(4).long()}, "batch must be \\[N\\], the graph of each of 13 rows"),
        ("ids-node", {"batch": torch.arange(13) % 2, "num_graphs": 2}, "batch must ascend"),
        ("ids-node", {"batch": torch.arange(13), "num_graphs": 2}, "batch must lie in 0..num_graphs - 1, got 0..12"),
        ("ids-node", {"edge_index": torch.tensor([[0], [99]])}, "edge_index.*got 99"),
        ("ids-node", {"edge_index": random_graph(0)}, "13"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input(variant: str, change: dict[str, Any], text: str, inputs: Inputs) -> None:
    model = make(variant)
    batch = inputs(model)
    assert batch["x"].shape[0] == 13
    with pytest.raises(ArgumentError, match=text):
        model(**{**batch, **change})


# --- compile and export ---------------------------------------------------------------------------------------


def test_compile_over_three_sizes(inputs: Inputs) -> None:
    torch._dynamo.reset()
    count = 0

    def counting(module: nn.Module, arguments: list[Tensor]) -> Callable[..., object]:
        nonlocal count
        count += 1
        return module.forward

    model = make("ids-edges-wl-mean")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting)
    for seed in (1, 2, 3):
        batch = inputs(model, random_graph(seed, "hub"))
        batch["num_graphs"] = 1
        expected, got = model(**batch), compiled(**batch)
        torch.testing.assert_close(got, expected)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.testing.assert_close(
            torch.autograd.grad(got.sum(), parameters, allow_unused=True, materialize_grads=True),
            torch.autograd.grad(expected.sum(), parameters, allow_unused=True, materialize_grads=True),
        )
    assert count <= 2


def test_export(inputs: Inputs) -> None:
    model = make("features-pe-node")
    batch = inputs(model, random_graph(2, "hub"))
    arguments = {key: value for key, value in batch.items() if isinstance(value, Tensor) and key != "batch"}
    program = torch.export.export(model, (), arguments)
    torch.testing.assert_close(program.module()(**arguments), model(**arguments))
