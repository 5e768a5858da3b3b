"""HGTConv is PyG's HGTConv, and normalises over what it is told to."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphattn import TokenGraph
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.testing import require_or_skip

require_or_skip("pyg")

from torch_geometric.nn import HGTConv as PyGHGTConv  # noqa: E402
from torch_geometric.utils import to_torch_csr_tensor  # noqa: E402

from graphattn.conv import HGTConv  # noqa: E402

SIZES = {"paper": 7, "author": 5, "venue": 3}
WIDTHS = {"paper": 8, "author": 6, "venue": 8}
EDGES = {  # venues read nobody; two relations join the same types; one relation has no edge
    ("author", "writes", "paper"): 9,
    ("paper", "written_by", "author"): 12,
    ("paper", "cites", "paper"): 6,
    ("venue", "prints", "paper"): 0,
    ("author", "reviews", "paper"): 8,
}
METADATA = (list(SIZES), list(EDGES))
Dicts = tuple[dict[str, Tensor], dict[Any, Tensor]]
scopes = pytest.mark.parametrize("softmax_over", ["target", "relation"])


def inputs(seed: int = 0, *, dtype: torch.dtype = torch.float64, factor: int = 1) -> Dicts:
    random = torch.Generator().manual_seed(seed)
    sizes = {kind: size * factor for kind, size in SIZES.items()}
    x = {kind: torch.randn(sizes[kind], WIDTHS[kind], generator=random, dtype=dtype) for kind in SIZES}
    edges = {
        relation: torch.stack(
            [torch.randint(sizes[relation[end]], (number * factor,), generator=random) for end in (0, 2)]
        )
        for relation, number in EDGES.items()
    }
    return x, edges


def with_other_parameters(conv: nn.Module) -> nn.Module:
    """None is 1, as those of the relations and skips are at first."""
    torch.manual_seed(7)
    for parameter in conv.parameters():
        nn.init.normal_(parameter, std=0.5)
    return conv


def gradients(conv: nn.Module, out: dict[str, Tensor], x: dict[str, Tensor]) -> list[Tensor]:
    total = torch.stack([rows.sin().sum() for rows in out.values()]).sum()
    leaves = [*x.values(), *conv.parameters()]
    return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("channels", [WIDTHS, -1], ids=["given", "lazy"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_equals_pyg(channels: Any, heads: int, seed: int) -> None:
    x, edges = inputs(seed)
    theirs, ours = (cls(channels, 8, METADATA, heads).double() for cls in (PyGHGTConv, HGTConv))
    theirs(x, edges), ours(x, edges)  # makes lazy parameters
    with_other_parameters(theirs)
    ours.load_state_dict(theirs.state_dict())
    for rows in x.values():
        rows.requires_grad_()
    expected, out = theirs(x, edges), ours(x, edges)
    assert list(out) == list(expected) == ["paper", "author"]
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    wanted = gradients(theirs, expected, x)
    torch.testing.assert_close(gradients(ours, out, x), wanted, rtol=1e-10, atol=1e-12)


def test_parts_of_a_graph() -> None:
    """A sample of a large graph lacks relations, or has no edge or node of some kind."""
    x, edges = inputs()
    theirs, ours = (cls(WIDTHS, 8, METADATA, 2).double() for cls in (PyGHGTConv, HGTConv))
    ours.load_state_dict(with_other_parameters(theirs).state_dict())
    some = {relation: edges[relation] for relation in list(edges)[:2]}
    torch.testing.assert_close(ours(x, some), theirs(x, some))
    nobody = {**x, "venue": x["venue"][:0]}
    torch.testing.assert_close(ours(nobody, edges), theirs(nobody, edges))
    without = {kind: rows for kind, rows in x.items() if kind != "venue"}
    torch.testing.assert_close(ours(without, some), theirs(without, some))
    none = {relation: edge_index[:, :0] for relation, edge_index in edges.items()}
    torch.testing.assert_close(ours(x, none), theirs(x, none))
    torch.testing.assert_close(ours(x, {}), theirs(x, none))


def by_hand(conv: HGTConv, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> dict[str, Tensor]:
    """Node by node and head by head, with a softmax for each relation."""
    heads, width = conv.heads, conv.out_channels // conv.heads
    k, q, v = {}, {}, {}
    for kind, rows in conv.kqv_lin(x).items():
        k[kind], q[kind], v[kind] = rows.view(-1, 3, heads, width).unbind(1)
    out = {}
    for kind in ("paper", "author"):
        total = torch.zeros(len(x[kind]), heads, width, dtype=torch.float64)
        for number, (relation, (source, target)) in enumerate(edges.items()):
            if relation[2] != kind:
                continue
            for t in range(len(total)):
                for h in range(heads):
                    read = source[target == t]
                    at = h * len(METADATA[1]) + number
                    keys = k[relation[0]][read, h] @ conv.k_rel.weight[at]
                    scores = keys @ q[kind][t, h] * conv.p_rel["__".join(relation)][0, h] / width**0.5
                    total[t, h] += scores.softmax(0) @ (v[relation[0]][read, h] @ conv.v_rel.weight[at])
        rows = conv.out_lin({kind: nn.functional.gelu(total.flatten(1))})[kind]
        if rows.shape[1] == x[kind].shape[1]:
            share = conv.skip[kind].sigmoid()
            rows = share * rows + (1 - share) * x[kind]
        out[kind] = rows
    return out


def test_softmax_over_relations() -> None:
    x, edges = inputs()
    conv = with_other_parameters(HGTConv(WIDTHS, 8, METADATA, 2, softmax_over="relation").double())
    out = conv(x, edges)
    torch.testing.assert_close(out, by_hand(conv, x, edges))
    other = HGTConv(WIDTHS, 8, METADATA, 2).double()
    other.load_state_dict(conv.state_dict())
    assert not torch.allclose(other(x, edges)["paper"], out["paper"])  # read by several relations
    torch.testing.assert_close(other(x, edges)["author"], out["author"])  # by one


def test_only_over_targets_do_relations_compete() -> None:
    """A relation whose scores are far larger silences the others, if they share a softmax."""
    x, edges = inputs()
    loud, quiet = list(edges)[2], list(edges)[0]
    changed = {}
    for softmax_over in ("target", "relation"):
        conv = with_other_parameters(HGTConv(WIDTHS, 8, METADATA, 2, softmax_over=softmax_over).double())
        before = conv(x, edges)["paper"]
        with torch.no_grad():
            conv.kqv_lin.lins["paper"].bias[:16] = 30.0  # keys and queries of papers match each other
            conv.k_rel.weight.view(2, 5, 4, 4)[:, 2] = torch.eye(4, dtype=torch.float64)
            conv.p_rel["__".join(loud)].fill_(1.0)
        assert not torch.allclose(conv(x, edges)["paper"], before)
        less = {**edges, quiet: edges[quiet][:, :0]}
        torch.testing.assert_close(conv(x, edges)["author"], conv(x, less)["author"])
        both = torch.isin(torch.arange(7), edges[loud][1]) & torch.isin(torch.arange(7), edges[quiet][1])
        assert both.any()
        changed[softmax_over] = (conv(x, edges)["paper"] - conv(x, less)["paper"])[both].abs().max()
    assert changed["target"] < 1e-6 < 1e-3 < changed["relation"]


@scopes
def test_forms_of_edges(softmax_over: Any) -> None:
    x, edges = inputs()
    conv = with_other_parameters(HGTConv(WIDTHS, 8, METADATA, 2, softmax_over=softmax_over).double())
    expected = conv(x, edges)
    graphs = {
        relation: TokenGraph.from_edge_index(
            edge_index, num_sources=len(x[relation[0]]), num_targets=len(x[relation[2]])
        )
        for relation, edge_index in edges.items()
    }
    torch.testing.assert_close(conv(x, graphs), expected)
    torch.testing.assert_close(conv(x, {r: edge_index.int() for r, edge_index in edges.items()}), expected)
    unique = {relation: edge_index.unique(dim=1) for relation, edge_index in edges.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse")
        sparse = {
            relation: to_torch_csr_tensor(edge_index.flip(0), size=(len(x[relation[2]]), len(x[relation[0]])))
            for relation, edge_index in unique.items()
        }
    torch.testing.assert_close(conv(x, sparse), conv(x, unique))


@scopes
def test_order_of_types_edges_and_nodes_is_no_matter(softmax_over: Any) -> None:
    x, edges = inputs()
    conv = with_other_parameters(HGTConv(WIDTHS, 8, METADATA, 2, softmax_over=softmax_over).double())
    expected = conv(x, edges)
    order = torch.randperm(7)
    moved_x = {kind: x[kind][order] if kind == "paper" else x[kind] for kind in reversed(x)}
    moved_edges = {}
    for relation in reversed(edges):
        source, target = edges[relation][:, torch.randperm(edges[relation].shape[1])]
        source = order.argsort()[source] if relation[0] == "paper" else source
        target = order.argsort()[target] if relation[2] == "paper" else target
        moved_edges[relation] = torch.stack([source, target])
    out = conv(moved_x, moved_edges)
    torch.testing.assert_close(out["paper"], expected["paper"][order])
    torch.testing.assert_close(out["author"], expected["author"])


def test_state_dict_and_drawing_are_pygs() -> None:
    torch.manual_seed(3)
    theirs = PyGHGTConv(WIDTHS, 8, METADATA, 2)
    torch.manual_seed(3)
    ours = HGTConv(WIDTHS, 8, METADATA, 2, softmax_over="relation")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    before = copy.deepcopy(ours.state_dict())
    ours.reset_parameters()
    drawn = [name for name in before if not torch.equal(before[name], ours.state_dict()[name])]
    assert set(before) - set(drawn) == {name for name in before if name.startswith(("skip", "p_rel"))}
    theirs.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(theirs) == "HGTConv(-1, 8, heads=2)"


@scopes
def test_message_hooks_see_every_edge_and_change_nothing(softmax_over: Any) -> None:
    x, edges = inputs()
    conv = with_other_parameters(HGTConv(WIDTHS, 8, METADATA, 2, softmax_over=softmax_over).double())
    expected = conv(x, edges)
    seen: list[Any] = []
    handle = conv.register_message_forward_hook(lambda module, inputs, out: seen.append((inputs[0]["alpha"], out)))
    torch.testing.assert_close(conv(x, edges), expected)
    handle.remove()
    conv(x, edges)
    ((alpha, messages),) = seen
    assert messages.shape == (sum(EDGES.values()), 2, 4)
    groups = {(r[2], r if softmax_over == "relation" else None, int(t)) for r, e in edges.items() for t in e[1]}
    torch.testing.assert_close(alpha.sum(0), torch.full((2,), float(len(groups)), dtype=torch.float64))


@pytest.fixture
def fresh_compiler() -> Iterator[Any]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def test_compile_at_most_one_recompilation(fresh_compiler: Any) -> None:
    conv = with_other_parameters(HGTConv(WIDTHS, 8, METADATA, 2, softmax_over="relation"))
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    for factor in (2, 3, 5):
        x, edges = inputs(dtype=torch.float32, factor=factor)
        expected, out = conv(x, edges), compiled(x, edges)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients(conv, out, {}), gradients(conv, expected, {}), rtol=1e-4, atol=1e-5)
    assert fresh_compiler["stats"]["unique_graphs"] <= 2


def test_autocast() -> None:
    x, edges = inputs(dtype=torch.float32)
    conv = HGTConv(WIDTHS, 8, METADATA, 2)
    expected = conv(x, edges)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x, edges)
    for kind, rows in out.items():
        torch.testing.assert_close(rows.float(), expected[kind], rtol=0.05, atol=0.05)


def test_bad_input_is_one_clear_error() -> None:
    x, edges = inputs(dtype=torch.float32)
    conv = HGTConv(WIDTHS, 8, METADATA, 2)
    writes = ("author", "writes", "paper")
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (x, {("paper", "likes", "paper"): edges[writes]}, ArgumentError, "edge types of the metadata, got .*likes"),
        ({"paper": x["paper"]}, edges, ArgumentError, "x_dict must have features of 'author'"),
        ({**x, "author": x["author"][:, :5]}, edges, ArgumentError, r"x_dict\['author'\] must have shape \[N, 6\]"),
        ({**x, "author": x["author"].long()}, edges, ArgumentTypeError, r"x_dict\['author'\] must be a floating"),
        # Of another type, there would be such a node.
        (x, {writes: torch.tensor([[5], [0]])}, ArgumentError, r"writes.*edge_index\[0\] \(source\) .*got 5"),
        (x, {writes: torch.tensor([[0], [7]])}, ArgumentError, r"writes.*edge_index\[1\] \(target\) .*got 7"),
        (x, {writes: edges[writes].float()}, ArgumentTypeError, "writes.*must be int64"),
        (x, {writes: [[0], [0]]}, ArgumentTypeError, "writes.*got list"),
        (x, {writes: edges[writes] > 0}, ArgumentError, r"writes.*a boolean tensor is a mask \[targets, sources\]"),
        (x, {writes: edges[writes].to("meta")}, ArgumentError, "edge_index_dict must be on .* x_dict, cpu, got meta"),
    ]
    for bad_x, bad_edges, error, text in cases:
        with pytest.raises(error, match=text):
            conv(bad_x, bad_edges)


def test_bad_options_are_refused() -> None:
    for options, text in (
        ({"heads": 3}, "out_channels must be a positive multiple of heads"),
        ({"softmax_over": "source"}, "softmax_over must be 'target' or 'relation', got 'source'"),
        ({"flow": "target_to_source"}, "flow"),
        ({"aggr": "mean"}, "aggr"),
    ):
        with pytest.raises(ArgumentError, match=text):
            HGTConv(8, 8, METADATA, **options)
