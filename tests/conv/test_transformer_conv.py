"""TransformerConv is PyG's TransformerConv."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.testing import require_or_skip

require_or_skip("pyg")

from torch_geometric.nn import TransformerConv as PyGTransformerConv  # noqa: E402

from graphattn.conv import TransformerConv, _packed  # noqa: E402

CHANNELS = 4

# edge_dim below and above CHANNELS: edge features are projected at the targets and at the edges, respectively.
OPTIONS = [
    {"heads": heads, "concat": concat, "beta": beta, "root_weight": root_weight, "bias": bias, "edge_dim": edge_dim}
    for heads, concat, beta, root_weight, bias, edge_dim in product(
        (1, 3), (True, False), (True, False), (True, False), (True, False), (None, 3, 9)
    )
]


def twins(*args: Any, **options: Any) -> tuple[torch.nn.Module, TransformerConv]:
    theirs = PyGTransformerConv(*args, **options).double()
    ours = TransformerConv(*args, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def gradients(conv: torch.nn.Module, out: Tensor, *inputs: Tensor) -> list[Tensor | None]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    leaves = [*inputs, *conv.parameters()]
    return list(torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True))


def assert_same(theirs: list[Tensor | None], ours: list[Tensor | None]) -> None:
    for a, b in zip(theirs, ours, strict=True):
        # Parameters that take no part: lin_skip without root_weight.
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections in one product."""
    monkeypatch.setattr(_packed, "_pays", lambda x, width: True)


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_equals_pyg_as_on_cuda(sample: Any, options: dict[str, Any]) -> None:
    test_equals_pyg(sample, options)


@pytest.mark.parametrize(
    ("channels", "edge_dim", "backend", "taken"),
    [(8, 9, "auto", True), (8, 8, "auto", False), (8, 9, "gather", False), (256, 300, "auto", True)]
    + [(257, 300, "auto", False), (257, 300, "gather", False)],
)
def test_rows_of_edges_go_where_a_kernel_reads_them(channels: int, edge_dim: int, backend: str, taken: bool) -> None:
    """Others would copy keys and values for each edge, or refuse heads of so many channels."""
    require_or_skip("triton")
    attr = SimpleNamespace(is_cuda=True, device=torch.device("cuda"), shape=(5, edge_dim))
    assert TransformerConv(3, channels, edge_dim=edge_dim, backend=backend)._takes_rows(attr) == taken  # type: ignore[arg-type]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_equals_pyg(sample: Any, options: dict[str, Any]) -> None:
    s = sample(edge_width=options["edge_dim"] or 3)
    edge_attr = s.edge_attr.requires_grad_() if options["edge_dim"] else None
    x = s.x.requires_grad_()
    theirs, ours = twins(6, CHANNELS, **options)
    inputs = [x] if edge_attr is None else [x, edge_attr]

    expected, (_, expected_alpha) = theirs(x, s.edge_index, edge_attr, return_attention_weights=True)
    out, (edge_index, alpha) = ours(x, s.edge_index, edge_attr, return_attention_weights=True)
    fused = ours(x, s.edge_index, edge_attr)

    assert edge_index is s.edge_index
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fused, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(alpha, expected_alpha, rtol=1e-10, atol=1e-12)
    wanted = gradients(theirs, expected, *inputs)
    assert_same(wanted, gradients(ours, out, *inputs))
    assert_same(wanted, gradients(ours, fused, *inputs))


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_equals_pyg_on_bipartite_graphs(sample: Any, edge_dim: int | None) -> None:
    s = sample(5, targets=8)
    x_target = torch.cat([s.x_target, s.x_target[:, :2]], 1)
    edge_attr = s.edge_attr if edge_dim else None
    theirs, ours = twins((6, 8), CHANNELS, heads=2, edge_dim=edge_dim, beta=True)
    expected = theirs((s.x, x_target), s.edge_index, edge_attr)
    out = ours((s.x, x_target), s.edge_index, edge_attr, size=(5, 8))
    assert out.shape == (8, 2 * CHANNELS)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_equals_pyg_against_the_flow(sample: Any, edge_dim: int | None) -> None:
    s = sample(5, targets=8)
    edge_attr = s.edge_attr if edge_dim else None
    theirs, ours = twins((6, 6), CHANNELS, heads=2, edge_dim=edge_dim, flow="target_to_source")
    expected = theirs((s.x, s.x_target), s.edge_index.flip(0), edge_attr)
    out, (edge_index, _) = ours((s.x, s.x_target), s.edge_index.flip(0), edge_attr, True, size=(8, 5))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(edge_index, s.edge_index.flip(0))


@pytest.mark.parametrize("edge_dim", [None, 3, 9])
def test_a_node_without_in_edges_gets_zero_from_attention(edge_dim: int | None) -> None:
    edge_index = torch.tensor([[0, 1, 1], [1, 0, 1]])  # nodes 2 and 3 read nobody
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    edge_attr = torch.randn(3, edge_dim, dtype=torch.float64) if edge_dim else None
    theirs, ours = twins(6, CHANNELS, heads=2, edge_dim=edge_dim, root_weight=False)
    out = ours(x, edge_index, edge_attr)
    assert torch.equal(out[2:], torch.zeros(2, 2 * CHANNELS, dtype=torch.float64))
    torch.testing.assert_close(out, theirs(x, edge_index, edge_attr), rtol=1e-10, atol=1e-12)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.isfinite(grad).all() and torch.equal(grad[2:], torch.zeros_like(grad[2:]))


def test_a_graph_without_edges_gives_the_skip_alone() -> None:
    conv = TransformerConv(6, CHANNELS, heads=2, edge_dim=3)
    x = torch.randn(4, 6)
    out, (edge_index, alpha) = conv(x, torch.empty(2, 0, dtype=torch.long), torch.empty(0, 3), True)
    assert torch.equal(out, conv.lin_skip(x))
    assert edge_index.shape == (2, 0) and alpha.shape == (0, 2)


@pytest.mark.parametrize("options", [{}, {"edge_dim": 3, "beta": True, "concat": False}])
def test_state_dicts_load_both_ways(options: dict[str, Any]) -> None:
    theirs = PyGTransformerConv(6, CHANNELS, heads=2, **options)
    ours = TransformerConv(6, CHANNELS, heads=2, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ours.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


def test_the_same_seed_draws_pygs_parameters() -> None:
    options = {"heads": 2, "edge_dim": 3, "beta": True}
    torch.manual_seed(3)
    theirs = PyGTransformerConv(6, CHANNELS, **options)
    torch.manual_seed(3)
    ours = TransformerConv(6, CHANNELS, **options)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_pygs_arguments_by_position(sample: Any) -> None:
    args = (6, CHANNELS, 2, False, True, 0.25, 3, False, True)
    theirs, ours = PyGTransformerConv(*args), TransformerConv(*args)
    for name in ("in_channels", "out_channels", "heads", "concat", "beta", "dropout", "edge_dim", "root_weight"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert repr(ours) == repr(theirs) == f"TransformerConv(6, {CHANNELS}, heads=2)"
    s = sample(dtype=torch.float32)
    ours.eval(), theirs.eval()
    ours.load_state_dict(theirs.state_dict())
    # x, edge_index, edge_attr, return_attention_weights
    inputs = (s.x, s.edge_index, s.edge_attr, True)
    torch.testing.assert_close(ours(*inputs), theirs(*inputs))


def largest_kept(conv: torch.nn.Module, *inputs: Tensor | None) -> int:
    """Elements of the largest tensor that the forward pass keeps for the backward pass."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        conv(*inputs)
    return max(kept)


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_no_edge_by_head_by_channel_tensor_is_kept(sample: Any, edge_dim: int | None) -> None:
    edges, heads, channels = 500, 4, 16
    s = sample(8, edges)
    theirs, ours = twins(6, channels, heads=heads, edge_dim=edge_dim)
    inputs = (s.x.requires_grad_(), s.edge_index, s.edge_attr if edge_dim else None)
    assert largest_kept(theirs, *inputs) >= edges * heads * channels
    assert largest_kept(ours, *inputs) < edges * heads * channels / 4
