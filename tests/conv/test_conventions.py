"""What every layer of graphattn.conv promises."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.testing import require_or_skip

require_or_skip("pyg")

from torch_geometric import EdgeIndex  # noqa: E402
from torch_geometric.data import Batch, Data  # noqa: E402
from torch_geometric.nn import MessagePassing  # noqa: E402
from torch_geometric.utils import (  # noqa: E402
    to_torch_coo_tensor,
    to_torch_csc_tensor,
    to_torch_csr_tensor,
)

from graphattn.conv import GATConv, GATv2Conv, GraphTransformerConv, TransformerConv  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

ADDITIVE = (GATConv, GATv2Conv)
each = pytest.mark.parametrize("kind", [TransformerConv, GraphTransformerConv, *ADDITIVE])
with_loops = pytest.mark.parametrize(
    ("kind", "loops"),
    [(TransformerConv, None), (GraphTransformerConv, None), *((kind, loops) for kind in ADDITIVE for loops in (0, 1))],
)


def layer(kind: type, *, loops: int | None = 0, channels: Any = 6, **options: Any) -> MessagePassing:
    if kind in ADDITIVE:
        options["add_self_loops"] = bool(loops)
    return kind(channels, 4, **{"heads": 2, "edge_dim": 3, **options}).double()


# --- forms of edge_index ----------------------------------------------------------------------------------


class SparseTensor:
    """The face of ``torch_sparse.SparseTensor``: row-major, rows are targets."""

    def __init__(self, edge_index: Tensor, value: Tensor | None, sizes: tuple[int, int]) -> None:
        (source, target), self._sizes = edge_index, sizes
        order = torch.argsort(target * sizes[1] + source, stable=True)
        self._row, self._col = target[order], source[order]
        self._value = None if value is None else value[order]

    def sparse_sizes(self) -> tuple[int, int]:
        return self._sizes

    def csr(self) -> tuple[Tensor, Tensor, Tensor | None]:
        rowptr = torch.searchsorted(self._row, torch.arange(self._sizes[0] + 1))
        return rowptr, self._col, self._value


FORMS: dict[str, Callable[[Tensor, Tensor, int], Any]] = {
    "EdgeIndex": lambda edges, attr, n: EdgeIndex(edges, sparse_size=(n, n)),
    "EdgeIndex without a size": lambda edges, attr, n: EdgeIndex(edges),
    "CSR": lambda edges, attr, n: to_torch_csr_tensor(edges.flip(0), attr, size=n),
    "CSC": lambda edges, attr, n: to_torch_csc_tensor(edges.flip(0), attr, size=n),
    "COO": lambda edges, attr, n: to_torch_coo_tensor(edges.flip(0), attr, size=n),
    "SparseTensor": lambda edges, attr, n: SparseTensor(edges, attr, (n, n)),
    "TokenGraph": lambda edges, attr, n: TokenGraph.from_edge_index(edges, n),
}
MATRICES = ("CSR", "CSC", "COO", "SparseTensor")  # hold edge_attr as their values, in an order of their own


def simple_sample(sample: Any) -> Any:
    """Without duplicate edges, which sparse matrices would merge."""
    s = sample()
    pairs = s.edge_index.t().tolist()
    first = [n for n, pair in enumerate(pairs) if pair not in pairs[:n]]
    return s._replace(edge_index=s.edge_index[:, first], edge_attr=s.edge_attr[first])


@with_loops
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_edge_index_gives_the_same(kind: type, loops: int | None, form: str, sample: Any) -> None:
    s = simple_sample(sample)
    n = s.x.shape[0]
    conv, plain = layer(kind, loops=loops), layer(kind, loops=loops, edge_dim=None)
    expected, (listed, expected_alpha) = conv(s.x, s.edge_index, s.edge_attr, return_attention_weights=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse")
        edges = FORMS[form](s.edge_index, s.edge_attr, n)

    torch.testing.assert_close(plain(s.x, edges), plain(s.x, s.edge_index))
    edge_attr = None if form in MATRICES else s.edge_attr
    out, (edge_index, alpha) = conv(s.x, edges, edge_attr, return_attention_weights=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(conv(s.x, edges, edge_attr), expected)
    assert isinstance(edge_index, Tensor) and edge_index.dtype == torch.int64
    assert edge_index.shape == listed.shape and alpha.shape == expected_alpha.shape
    if form not in MATRICES:
        assert torch.equal(edge_index, listed) and (loops or torch.equal(listed, s.edge_index))
        torch.testing.assert_close(alpha, expected_alpha)

    def dense(edge_index: Tensor, alpha: Tensor) -> Tensor:
        return torch.zeros(n, n, 2, dtype=alpha.dtype).index_put_((edge_index[1], edge_index[0]), alpha)

    # Whatever the order is, edge_index and alpha share it.
    torch.testing.assert_close(dense(edge_index, alpha), dense(listed, expected_alpha))


@each
def test_one_number_for_each_edge_may_be_flat(kind: type, sample: Any) -> None:
    s = simple_sample(sample)
    conv = layer(kind, edge_dim=1)
    expected = conv(s.x, s.edge_index, s.edge_attr[:, :1])
    torch.testing.assert_close(conv(s.x, s.edge_index, s.edge_attr[:, 0]), expected)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse")
        adj_t = to_torch_csr_tensor(s.edge_index.flip(0), s.edge_attr[:, 0], size=s.x.shape[0])
    torch.testing.assert_close(conv(s.x, adj_t), expected)


# --- weights ----------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("edge_dim", [None, 3])
def test_weights_are_in_the_order_given_and_sum_to_one(kind: type, edge_dim: int | None, sample: Any) -> None:
    s = sample()
    conv = layer(kind, edge_dim=edge_dim)
    edge_attr = s.edge_attr if edge_dim else None
    out, (edge_index, alpha) = conv(s.x, s.edge_index, edge_attr, return_attention_weights=True)
    assert edge_index is s.edge_index
    totals = torch.zeros(s.x.shape[0], 2, dtype=torch.float64).index_add_(0, s.edge_index[1], alpha)
    torch.testing.assert_close(totals, torch.ones_like(totals))
    # Another order of the edges is the same order of the weights, and no other output.
    order = torch.randperm(s.edge_index.shape[1])
    shuffled = None if edge_attr is None else edge_attr[order]
    again, (_, permuted) = conv(s.x, s.edge_index[:, order], shuffled, return_attention_weights=True)
    torch.testing.assert_close(permuted, alpha[order])
    torch.testing.assert_close(again, out)


@each
def test_only_a_true_value_returns_weights(kind: type, sample: Any) -> None:
    s = sample()
    conv = layer(kind)
    for falsy in (None, False, 0):
        assert isinstance(conv(s.x, s.edge_index, s.edge_attr, return_attention_weights=falsy), Tensor)
    for truthy in (True, 1):
        assert isinstance(conv(s.x, s.edge_index, s.edge_attr, return_attention_weights=truthy), tuple)


@each
@pytest.mark.parametrize("edge_dim", [None, 3])
def test_dropout_acts_on_weights_in_training_only(kind: type, edge_dim: int | None) -> None:
    nodes, p = 400, 0.25
    ring = torch.stack([torch.arange(nodes), torch.arange(nodes).roll(1)])  # each weight is 1
    options = {"root_weight": False} if kind is TransformerConv else {"bias": False}
    conv = layer(kind, dropout=p, edge_dim=edge_dim, **options)
    x = torch.randn(nodes, 6, dtype=torch.float64)
    edge_attr = torch.randn(nodes, 3, dtype=torch.float64) if edge_dim else None

    torch.manual_seed(1)
    first, (_, alpha) = conv(x, ring, edge_attr, return_attention_weights=True)
    torch.manual_seed(1)
    second = conv(x, ring, edge_attr)
    third = conv(x, ring, edge_attr)
    full = conv.eval()(x, ring, edge_attr)
    torch.testing.assert_close(alpha, torch.ones_like(alpha))  # before dropout
    torch.testing.assert_close(first, second)
    assert not torch.equal(second, third)
    # Each head of each node is dropped or scaled, as a whole.
    ratio = (first / full).view(nodes, 2, 4)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    dropped = ratio[..., 0].abs() < 1e-9
    torch.testing.assert_close(ratio[..., 0][~dropped], torch.full_like(ratio[..., 0][~dropped], 1 / (1 - p)))
    assert abs(dropped.double().mean() - p) < 0.1
    torch.testing.assert_close(conv(x, ring, edge_attr), full)


# --- symmetries -------------------------------------------------------------------------------------------


@with_loops
def test_permuting_the_nodes_permutes_the_output(kind: type, loops: int | None, sample: Any) -> None:
    s = sample()
    conv = layer(kind, loops=loops)
    order = torch.randperm(s.x.shape[0])  # new node n is old node order[n]
    renamed = torch.argsort(order)[s.edge_index]
    out = conv(s.x, s.edge_index, s.edge_attr)
    torch.testing.assert_close(conv(s.x[order], renamed, s.edge_attr), out[order])


@with_loops
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_its_members_and_nothing_leaks(kind: type, loops: int | None, seed: int, sample: Any) -> None:
    conv = layer(kind, loops=loops)
    members = [sample(5, 12, seed=2 * seed), sample(8, 20, seed=2 * seed + 1)]
    datas = [Data(x=m.x, edge_index=m.edge_index, edge_attr=m.edge_attr) for m in members]
    batch = Batch.from_data_list(datas)
    singles = torch.cat([conv(m.x, m.edge_index, m.edge_attr) for m in members])
    out = conv(batch.x, batch.edge_index, batch.edge_attr)
    torch.testing.assert_close(out, singles)

    spoiled_x, spoiled_attr = batch.x.clone(), batch.edge_attr.clone()
    spoiled_x[5:], spoiled_attr[12:] = torch.nan, torch.nan
    spoiled = conv(spoiled_x, batch.edge_index, spoiled_attr)
    assert torch.equal(spoiled[:5], out[:5]) and spoiled[5:].isnan().all()


@with_loops
@pytest.mark.parametrize("edge_dim", [None, 3, 5])
def test_gradcheck(kind: type, loops: int | None, edge_dim: int | None, sample: Any) -> None:
    s = sample(4, 9, edge_width=edge_dim or 3)
    conv = layer(kind, loops=loops, edge_dim=edge_dim)
    names = [name for name, _ in conv.named_parameters()]
    values = [parameter.detach().requires_grad_() for parameter in conv.parameters()]

    def run(x: Tensor, edge_attr: Tensor, *parameters: Tensor) -> Tensor:
        inputs = (x, s.edge_index, edge_attr if edge_dim else None)
        return torch.func.functional_call(conv, dict(zip(names, parameters, strict=True)), inputs)

    assert torch.autograd.gradcheck(run, (s.x.requires_grad_(), s.edge_attr.requires_grad_(bool(edge_dim)), *values))


# --- construction -----------------------------------------------------------------------------------------


@each
def test_is_a_message_passing_layer(kind: type) -> None:
    conv = kind((6, 5), 4, heads=2)
    assert isinstance(conv, MessagePassing)
    assert repr(conv) == f"{kind.__name__}((6, 5), 4, heads=2)"
    assert repr(copy.deepcopy(conv)) == repr(conv)


@each
def test_reset_parameters_draws_all_anew(kind: type) -> None:
    conv = layer(kind, bias=True, **({"residual": True} if kind in ADDITIVE else {"root_weight": True}))
    for parameter in conv.parameters():
        torch.nn.init.constant_(parameter, 9.0)
    before = copy.deepcopy(conv.state_dict())
    torch.manual_seed(5)
    conv.reset_parameters()
    after = copy.deepcopy(conv.state_dict())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    torch.manual_seed(5)
    conv.reset_parameters()
    assert all(torch.equal(conv.state_dict()[name], after[name]) for name in after)


LINEARS = {
    TransformerConv: ("lin_key", "lin_query"),
    GraphTransformerConv: ("lin_key", "lin_query"),
    GATConv: ("lin_src", "lin_dst"),
    GATv2Conv: ("lin_l", "lin_r"),
}


@each
@pytest.mark.parametrize("channels", [-1, (-1, -1)])
def test_lazy_widths_come_from_the_first_input(kind: type, channels: Any, sample: Any) -> None:
    s = sample(5, targets=8, dtype=torch.float32)
    x = (s.x, torch.cat([s.x_target, s.x_target[:, :2]], 1)) if channels != -1 else s.x_target
    edge_index = s.edge_index
    options = {"residual": True} if kind in ADDITIVE else {"root_weight": True}
    make = partial(layer, kind, channels=channels, edge_dim=-1, **options)
    conv = make().float()
    out = conv(x, edge_index, s.edge_attr)
    assert out.shape == (8, 8)
    of_source, of_target = LINEARS[kind] if channels != -1 or kind is not GATConv else ("lin", "lin")
    assert getattr(conv, of_target).weight.shape == (8, 8 if channels != -1 else 6)
    assert getattr(conv, of_source).weight.shape == (8, 6) and conv.lin_edge.weight.shape == (8, 3)

    loaded = make().float()
    loaded.load_state_dict(conv.state_dict())
    torch.testing.assert_close(loaded(x, edge_index, s.edge_attr), out)


def test_import_does_not_load_pyg_until_a_layer_is_asked_for() -> None:
    paths = [str(ROOT / "kernels"), str(ROOT / "datasets"), str(ROOT)]
    code = f"""
import sys
sys.path[:0] = {paths!r}
import graphattn.conv
assert "TransformerConv" in dir(graphattn.conv) and not hasattr(graphattn.conv, "NoSuchConv")
print("torch_geometric" in sys.modules)
graphattn.conv.TransformerConv
print("torch_geometric" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "True"], done.stderr


# --- bad input --------------------------------------------------------------------------------------------

EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])
X, ATTR = torch.randn(3, 6), torch.randn(3, 3)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "source out of range": (
        {"edge_index": EDGES + torch.tensor([[1], [0]])},
        ArgumentError,
        r"edge_index\[0\] \(source\)",
    ),
    "target out of range": (
        {"edge_index": EDGES + torch.tensor([[0], [1]])},
        ArgumentError,
        r"edge_index\[1\] \(target\)",
    ),
    "negative index": ({"edge_index": EDGES - 1}, ArgumentError, r"edge_index\[0\].*got -1"),
    "float edge_index": ({"edge_index": EDGES.float()}, ArgumentTypeError, "edge_index must be int64"),
    "edge_index [E, 2]": ({"edge_index": torch.zeros(5, 2, dtype=torch.long)}, ArgumentError, r"edge_index .*\[2, E\]"),
    "edge_index on another device": (
        {"edge_index": EDGES.to("meta")},
        ArgumentError,
        "edge_index must be on the device of x, cpu, got meta",
    ),
    "boolean edge_index": ({"edge_index": EDGES > 0}, ArgumentError, r"boolean .* mask \[targets, sources\]"),
    "list of edges": ({"edge_index": [[0, 1], [1, 0]]}, ArgumentTypeError, "edge_index must be .* got list"),
    "graph of another size": (
        {"edge_index": TokenGraph.from_edge_index(EDGES, 4)},
        ArgumentError,
        "edge_index must be for as many source nodes as x has, 3, got 4",
    ),
    "graph of each head": (
        {"edge_index": TokenGraph.from_csr(torch.arange(4), torch.arange(3))},
        ArgumentError,
        "leading dimensions",
    ),
    "rows of edge_attr": ({"edge_attr": ATTR[:2]}, ArgumentError, r"edge_attr must have shape \[3, 3\].*got \[2, 3\]"),
    "width of edge_attr": ({"edge_attr": ATTR[:, :2]}, ArgumentError, r"edge_attr must have shape \[3, 3\]"),
    "categories as edge_attr": ({"edge_attr": ATTR.long()}, ArgumentTypeError, "edge_attr must be a floating tensor"),
    "no edge_attr": ({"edge_attr": None}, ArgumentError, r"edge_attr \[3, 3\] is needed"),
    "width of x": ({"x": X[:, :5]}, ArgumentError, r"x must have shape \[N, 6\], got \[3, 5\]"),
    "width of the targets": ({"x": (X, X[:, :5])}, ArgumentError, r"x\[1\] \(target features\) must have shape"),
    "x of one dimension": ({"x": X[0]}, ArgumentError, "x must have shape"),
    "integer x": ({"x": X.long()}, ArgumentTypeError, "x must be a floating tensor"),
    "no targets": ({"x": (X, None)}, ArgumentTypeError, r"x\[1\] \(target features\) .*needed"),
    "three x": ({"x": (X, X, X)}, ArgumentError, "pair"),
    "size": ({"size": (3, 4)}, ArgumentError, r"size .*\(3, 4\)"),
}


@pytest.mark.parametrize(
    ("kind", "case"),
    # Targets of GATConv may do without features.
    [(kind, case) for kind in LINEARS for case in BAD if (kind, case) != (GATConv, "no targets")],
)
def test_bad_input_is_one_clear_error(kind: type, case: str) -> None:
    change, error, text = BAD[case]
    if case == "graph of each head":
        change = {"edge_index": TokenGraph.per_head([change["edge_index"]] * 2)}
    conv = kind(6, 4, heads=2, edge_dim=3)
    arguments = {"x": X, "edge_index": EDGES, "edge_attr": ATTR}
    conv(**arguments)
    with pytest.raises(error, match=text):
        conv(**{**arguments, **change})


@with_loops
def test_on_the_meta_device_there_are_shapes_and_no_values_to_check(kind: type, loops: int | None) -> None:
    x, edge_index, edge_attr = (tensor.to("meta") for tensor in (X.double(), EDGES, ATTR.double()))
    out = layer(kind, loops=loops).to("meta")(x, edge_index, edge_attr)
    assert out.shape == (3, 8) and out.device.type == "meta"


@each
def test_edge_attr_without_edge_dim_is_refused(kind: type) -> None:
    with pytest.raises(ArgumentError, match="edge_dim=None"):
        kind(6, 4)(X, EDGES, ATTR)


@each
def test_the_flow_of_a_matrix_cannot_be_turned(kind: type) -> None:
    conv = kind(6, 4, flow="target_to_source")
    with pytest.raises(ArgumentError, match="target_to_source"):
        conv(X, TokenGraph.from_edge_index(EDGES, 3))


@each
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"aggr": "mean"}, "aggr"),
        ({"aggr": ["add", "max"]}, "aggr"),
        ({"decomposed_layers": 2}, "decomposed_layers"),
        ({"dropout": 1.0}, "dropout"),
        ({"heads": 0}, "heads"),
    ],
)
def test_bad_options_are_refused(kind: type, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError, match=name):
        kind(6, 4, **options)
    kind(6, 4, aggr="add")


@pytest.mark.parametrize("kind", ADDITIVE)
def test_fill_value_is_checked(kind: type) -> None:
    with pytest.raises(ArgumentError, match="fill_value must be .* got 'average'"):
        kind(6, 4, fill_value="average")
    for bad in (None, True):
        with pytest.raises(ArgumentTypeError, match="fill_value"):
            kind(6, 4, fill_value=bad)


def test_clamp_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match="clamp"):
        GraphTransformerConv(6, 4, clamp=0.0)
