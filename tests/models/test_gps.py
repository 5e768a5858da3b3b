"""GPS as a whole: published sizes, symmetries, batches, graphs and options, compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphattn import create_model
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, expander_edges
from graphattn.models.gps import GPS
from graphattn.testing import random_graph, require_or_skip

Inputs = Callable[..., dict[str, Any]]
ATOMS, BONDS = [5, 3], [4, 2]
# Every local layer, graph and input, and both kinds of prediction.
VARIANTS: dict[str, dict[str, Any]] = {
    "gated-complete-mean": {"in_vocab": ATOMS, "edge_vocab": BONDS, "rwse_dim": 4, "readout": "mean"},
    "gine-virtual-sum": {
        "in_vocab": ATOMS,
        "edge_vocab": BONDS,
        "local": "gine",
        "virtual_node": True,
        "readout": "sum",
    },
    "exphormer": {
        "in_vocab": 5,
        "edge_vocab": 4,
        "attention": "graph_transformer",
        "attention_on": "exphormer",
        "hubs": 2,
        "readout": "max",
    },
    "edges-node": {"in_channels": 3, "edge_channels": 2, "attention_on": "edges", "norm": "layer"},
    "sign-invariant-node": {
        "in_channels": 3,
        "pe_dim": 4,
        "pe_encoder": "sign_invariant",
        "local": "graph_transformer",
    },
    "attention-only": {"in_vocab": 5, "pe_dim": 3, "local": None, "readout": "mean"},
    "local-only": {"in_vocab": 5, "edge_vocab": 4, "attention": None, "readout": "mean"},
    "pyg-local": {"in_vocab": 5, "edge_vocab": 4, "local": "torch_geometric.nn:ResGatedGraphConv", "readout": "sum"},
    "our-conv-local": {"in_vocab": 5, "edge_vocab": 4, "local": "transformer", "readout": "mean"},
}
SMALL = {"width": 16, "heads": 2, "layers": 3, "rwse_width": 4, "pe_width": 4}
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def make(variant: str) -> GPS:
    """In float64, in evaluation, with batch-norm statistics that are not 0 and 1."""
    if "conv" in variant or "pyg" in variant:
        require_or_skip("pyg")
    torch.manual_seed(0)
    model = GPS(3, **SMALL, **VARIANTS[variant]).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    if model.virtual_row is not None:
        nn.init.normal_(model.virtual_row)
    model.head = nn.Identity()  # so narrow here that all of its ReLUs may be off
    return model


NODES, EDGES = ("x", "rwse", "pe", "batch"), ("edge_attr",)


def moved(batch: dict[str, Any], order: Tensor, edges: Tensor) -> dict[str, Any]:
    """Node n of the result is node order[n]; its edges are taken in the order ``edges``."""
    new = {key: batch[key][order] for key in NODES if batch.get(key) is not None}
    new |= {key: batch[key][edges] for key in EDGES if batch.get(key) is not None}
    return {**batch, **new, "edge_index": order.argsort()[batch["edge_index"]][:, edges]}


def joined(parts: list[dict[str, Any]], graphs: list[TokenGraph]) -> dict[str, Any]:
    whole = TokenGraph.batch(graphs)
    keys = [key for key in (*NODES[:-1], *EDGES) if parts[0].get(key) is not None]
    sizes = torch.tensor([graph.num_tokens for graph in graphs])
    return {
        **{key: torch.cat([part[key] for part in parts]) for key in keys},
        "edge_index": whole.edge_index,
        "batch": whole.target_batch,
        "num_graphs": len(graphs),
        "num_pairs": int(sizes.square().sum()),
    }


# --- sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        pytest.param("gps_zinc", {}, 423_717, id="zinc"),
        # Published: 558,625 with the atom types of that time (4 chiralities), which count the norm (2 x 64) of the edge
        # rows that the last layer makes and nobody reads.
        pytest.param("gps_molhiv", {"in_vocab": [119, 4, 12, 12, 10, 6, 6, 2, 2]}, 558_625 - 128, id="molhiv"),
    ],
)
def test_published_parameter_counts(name: str, options: dict[str, Any], count: int) -> None:
    model = create_model(name, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


# --- symmetries -----------------------------------------------------------------------------------------------


@EVERY
def test_nodes_may_be_renumbered_and_edges_reordered(variant: str, inputs: Inputs) -> None:
    """Within each graph. The expander follows the numbers of the nodes, so it is given here, and moves along."""
    model, graph = make(variant), random_graph(1, "batch")
    batch = inputs(model, graph)
    ptr = graph.target_ptr.tolist()
    order = torch.cat([begin + torch.randperm(end - begin) for begin, end in zip(ptr, ptr[1:], strict=False)])
    other = moved(batch, order, torch.randperm(graph.num_edges))
    if model.attention_on == "exphormer":
        batch["expander_index"] = expander_edges(graph, 4)
        other["expander_index"] = order.argsort()[batch["expander_index"]]
    out = model(**batch)
    expected = out[order] if model.readout == "node" else out
    torch.testing.assert_close(model(**other), expected, rtol=1e-9, atol=1e-9)


@EVERY
def test_a_batch_equals_its_members(variant: str, inputs: Inputs) -> None:
    model = make(variant)
    graphs = [random_graph(n, kind) for n, kind in enumerate(["hub", "no_edges", "one_token", "duplicates"])]
    parts = [inputs(model, graph, seed) for seed, graph in enumerate(graphs)]
    alone = torch.cat([model(**part) for part in parts])
    torch.testing.assert_close(model(**joined(parts, graphs)), alone, rtol=1e-9, atol=1e-9)


@EVERY
def test_one_member_of_a_batch_cannot_change_another(variant: str, inputs: Inputs) -> None:
    model = make(variant)
    graphs = [random_graph(n, kind) for n, kind in enumerate(["hub", "dense", "sparse", "duplicates"][:3])]
    parts = [inputs(model, graph, seed) for seed, graph in enumerate(graphs)]
    out = model(**joined(parts, graphs))
    graphs[1] = random_graph(9, "self_loops")
    parts[1] = inputs(model, graphs[1], 9)
    changed = model(**joined(parts, graphs))
    if model.readout == "node":
        sizes = [graph.num_tokens for graph in graphs]
        out = [out[: sizes[0]], out[-sizes[2] :]]
        changed = [changed[: sizes[0]], changed[-sizes[2] :]]
    else:
        out, changed = out[[0, 2]], changed[[0, 2]]
    torch.testing.assert_close(changed, out, rtol=1e-12, atol=1e-12)


@EVERY
def test_every_input_counts(variant: str, inputs: Inputs) -> None:
    model = make(variant)
    graph = random_graph(2, "dense")
    batch, other = inputs(model, graph, 0), inputs(model, graph, 1)
    out = model(**batch)
    for key in ("x", "edge_attr", "rwse", "pe"):
        if batch.get(key) is not None:
            assert not torch.allclose(model(**{**batch, key: other[key]}), out), key


@EVERY
def test_gradients_reach_every_parameter(variant: str, inputs: Inputs) -> None:
    """So that data parallel training need not look for unused ones; in training, where norms see the batch."""
    model = make(variant).train()
    batch = inputs(model)
    out = model(**batch)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_signs_do_not_matter_to_the_invariant_encoder(inputs: Inputs) -> None:
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0])
    for variant, same in (("sign-invariant-node", True), ("attention-only", False)):
        model = make(variant)
        batch = inputs(model)
        out = model(**{**batch, "pe": batch["pe"] * flip[: batch["pe"].shape[1]]})
        assert torch.allclose(out, model(**batch)) == same
    model = make("sign-invariant-node")
    batch = inputs(model)
    assert not torch.allclose(model(**batch, pe_eigenvalues=torch.ones_like(batch["pe"])), model(**batch))


def test_the_virtual_node_carries_between_components(inputs: Inputs) -> None:
    """Without attention and edges, only it does."""
    graph = random_graph(0, "no_edges")
    for virtual in (True, False):
        options = {**SMALL, "in_channels": 3, "local": "gine", "attention": None, "norm": "layer"}
        model = GPS(2, **options, virtual_node=virtual).eval()
        batch = inputs(model, graph)
        x = batch["x"].clone()
        x[0] += 1
        changed = model(**{**batch, "x": x}) - model(**batch)
        assert bool(changed[1:].abs().max() > 1e-6) == virtual


def test_ptr_and_counts_are_taken_or_looked_up(inputs: Inputs) -> None:
    model, graph = make("gated-complete-mean"), random_graph(1, "batch")
    batch = inputs(model, graph)
    out = model(**batch)
    least = {key: value for key, value in batch.items() if key not in ("num_graphs", "num_pairs")}
    assert torch.equal(model(**least), out)
    assert torch.equal(model(**batch, ptr=graph.target_ptr), out)
    alone = {key: value for key, value in least.items() if key != "batch"}
    assert torch.equal(model(**alone, ptr=graph.target_ptr), out)
    assert torch.equal(model(**{**batch, "edge_index": graph}), out)
    with pytest.raises(ArgumentError, match="num_edges must be what ptr says"):
        model(**{**batch, "num_pairs": 7})
    with pytest.raises(ArgumentError, match=r"ptr must rise from 0 to the number of tokens, 13, got 0..12"):
        model(**alone, ptr=torch.tensor([0, 5, 12]))


def test_nodes_of_a_graph_stand_together() -> None:
    """Else each would read the nodes of others, in silence where no edge says so."""
    model = GPS(3, **SMALL, in_channels=3, local=None)
    with pytest.raises(ArgumentError, match="batch must ascend"):
        model(torch.randn(4, 3), torch.zeros(2, 0, dtype=torch.int64), batch=torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ArgumentError, match="batch must lie in 0..num_graphs - 1, got 0..2 with num_graphs=2"):
        model(torch.randn(4, 3), torch.zeros(2, 0, dtype=torch.int64), batch=torch.tensor([0, 1, 1, 2]), num_graphs=2)


# --- compile and half types -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        "gated-complete-mean",
        pytest.param("gine-virtual-sum", marks=pytest.mark.slow),
        pytest.param("exphormer", marks=pytest.mark.slow),
    ],
)
def test_compile_once_for_all_sizes(variant: str, inputs: Inputs) -> None:
    """The whole network and its gradient as one graph, which stands for batches of all sizes."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = make(variant).float().train()
    del model.blocks[1:]  # one is as good as three, and compiles sooner
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for kinds in (["hub", "sparse"], ["dense", "no_edges", "duplicates"]):
        graphs = [random_graph(n, kind) for n, kind in enumerate(kinds)]
        batch = joined([inputs(model, graph, seed) for seed, graph in enumerate(graphs)], graphs)
        batch["ptr"] = TokenGraph.batch(graphs).target_ptr
        if variant == "exphormer":
            batch["expander_index"] = expander_edges(TokenGraph.batch(graphs), 4)
        results = []
        for run in (model, compiled):
            model.zero_grad()
            out = run(**batch)
            out.square().sum().backward()
            results.append([out, *(parameter.grad for parameter in model.parameters())])
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
    assert counter.frame_count <= 2


@EVERY
def test_trains_in_bfloat16(variant: str, inputs: Inputs) -> None:
    model = make(variant).float().train()
    batch = inputs(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    goal, losses = None, []
    for _ in range(25):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(**batch)
        goal = torch.randn_like(out.float()) if goal is None else goal
        loss = (out.float() - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give either in_vocab or in_channels, got None and None"),
        ({"in_vocab": 3, "edge_vocab": 3, "edge_channels": 3}, "give at most one of edge_vocab and edge_channels"),
        ({"in_vocab": 3, "readout": "median"}, "readout must be 'node' or one of .*got 'median'"),
        ({"in_vocab": 3, "attention_on": "all"}, "attention_on must be one of .*got 'all'"),
        ({"in_vocab": 3, "pe_encoder": "mlp"}, "pe_encoder must be 'linear' or 'sign_invariant', got 'mlp'"),
        ({"in_vocab": 3, "rwse_dim": 4, "rwse_width": 64}, "width must exceed the widths of the encodings"),
        ({"in_vocab": 3, "local": None, "attention": None}, "local and attention must not both be None"),
        ({"in_vocab": 3, "local": "gcnn"}, "conv must be one of .*got 'gcnn'"),
        ({"in_vocab": 3, "local": "torch:Nothing"}, "conv 'torch:Nothing' cannot be imported"),
        ({"in_vocab": 3, "local": "sage", "local_options": {"shape": 1}}, "layer 'sage' cannot be made with"),
        ({"in_vocab": 3, "attention": "self"}, "unknown mechanism 'self'"),
        ({"in_vocab": 3, "attention_options": {"clamp": 5.0}}, "options of mechanism 'multihead' .*got \\['clamp'\\]"),
        ({"in_vocab": 3, "attention_on": "exphormer", "virtual_node": True}, "hubs, 1 or more, and no virtual node"),
    ],
    ids=str,
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        GPS(3, **options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.zeros(13, 2)}, "x must hold integer ids"),
        ({"edge_attr": None}, "edge_attr is needed by this model and was not given"),
        ({"edge_attr": torch.zeros(1, 2, dtype=torch.int64)}, "edge_attr must have one row for each edge"),
        ({"rwse": None}, "rwse is needed by this model and was not given"),
        ({"rwse": torch.zeros(13, 3)}, "rwse must be \\[13, 4\\], a row for each node, got \\[13, 3\\]"),
    ],
    ids=str,
)
def test_wrong_inputs(change: dict[str, Any], text: str, inputs: Inputs) -> None:
    model = make("gated-complete-mean")
    batch = inputs(model)
    assert batch["x"].shape[0] == 13
    with pytest.raises(ArgumentError, match=text):
        model(**{**batch, **change})
