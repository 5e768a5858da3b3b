"""Edges are sorted once, and again when they change."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.testing import require_or_skip

require_or_skip("pyg")

from graphattn import TokenGraph  # noqa: E402
from graphattn.conv import GATConv, HGTConv, TransformerConv, _remembered  # noqa: E402
from graphattn.conv._remembered import remembered  # noqa: E402


@pytest.fixture
def count_sorts(monkeypatch: Any) -> list[int]:
    _remembered._KNOWN.clear()
    counted = [0]
    make = TokenGraph.from_edge_index.__func__  # type: ignore[attr-defined]

    def from_edge_index(cls: type, *args: Any, **kwargs: Any) -> TokenGraph:
        counted[0] += 1
        return make(cls, *args, **kwargs)

    monkeypatch.setattr(TokenGraph, "from_edge_index", classmethod(from_edge_index))
    return counted


@pytest.mark.parametrize("kind", [TransformerConv, GATConv])
def test_layers_and_steps_share_a_graph(kind: type, sample: Any, count_sorts: list[int]) -> None:
    s = sample(dtype=torch.float32)
    first, second = kind(6, 4), kind(4, 3)
    for _ in range(3):
        second(first(s.x, s.edge_index), s.edge_index)
    assert count_sorts == [1]
    with torch.inference_mode():  # finds what training made
        first(s.x, s.edge_index)
    assert count_sorts == [1]
    assert torch.equal(first(s.x, s.edge_index.clone()), first(s.x, s.edge_index))
    assert count_sorts == [2]


def test_loops_are_added_to_a_token_graph_once(sample: Any, count_sorts: list[int]) -> None:
    s = sample(dtype=torch.float32)
    graph, conv = TokenGraph.from_edge_index(s.edge_index, 7), GATConv(6, 4)
    for _ in range(3):
        conv(s.x, graph)
    assert count_sorts == [2]


def test_relations_are_stacked_once(sample: Any, count_sorts: list[int]) -> None:
    s, relation = sample(dtype=torch.float32), ("a", "to", "a")
    conv = HGTConv(6, 4, (["a"], [relation]))
    for _ in range(3):
        conv({"a": s.x}, {relation: s.edge_index})
    assert count_sorts == [1]


@pytest.mark.parametrize("kind", [TransformerConv, GATConv])
def test_a_change_in_place_is_seen(kind: type, sample: Any) -> None:
    s, other = sample(), sample(seed=1)
    conv = kind(6, 4).double()
    edge_index = s.edge_index.clone()
    conv(s.x, edge_index)
    edge_index.copy_(other.edge_index)
    assert torch.equal(conv(s.x, edge_index), conv(s.x, other.edge_index.clone()))
    view = edge_index[:, :5]
    view.copy_(s.edge_index[:, :5])
    assert torch.equal(conv(s.x, edge_index), conv(s.x, edge_index.clone()))


@pytest.mark.parametrize("kind", [TransformerConv, GATConv])
def test_a_buffer_that_is_filled_again_is_another_graph(kind: type, sample: Any) -> None:
    s, other = sample(), sample(seed=1)
    conv = kind(6, 4).double()
    buffer = s.edge_index.numpy().copy()
    edge_index = torch.from_numpy(buffer)
    conv(s.x, edge_index)
    buffer[:] = other.edge_index  # which PyTorch does not see
    assert torch.equal(conv(s.x, edge_index), conv(s.x, other.edge_index.clone()))
    edge_index.data.copy_(s.edge_index)
    assert torch.equal(conv(s.x, edge_index), conv(s.x, s.edge_index.clone()))


def test_other_sizes_are_another_graph(sample: Any) -> None:
    s = sample(5, dtype=torch.float32)
    conv = GATConv((6, 6), 4)
    more = torch.randn(9, 6)
    assert conv((s.x, s.x), s.edge_index).shape == (5, 4)
    assert conv((s.x, more), s.edge_index).shape == (9, 4)
    assert conv((more, s.x), s.edge_index).shape == (5, 4)


def test_training_after_inference(sample: Any, count_sorts: list[int]) -> None:
    """Graphs made in inference mode are of tensors that autograd refuses to save."""
    s, conv = sample(dtype=torch.float32), GATConv(6, 4)
    with torch.inference_mode():
        conv(s.x, s.edge_index)
        conv(s.x, s.edge_index)
    assert count_sorts == [1]
    conv(s.x, s.edge_index).sum().backward()
    assert count_sorts == [2]
    with torch.inference_mode():
        made_there = s.edge_index.clone()  # has no version
        for _ in range(2):
            conv(s.x, made_there)
    assert count_sorts == [4]


def test_what_is_deleted_is_forgotten() -> None:
    _remembered._KNOWN.clear()
    a, b = torch.zeros(2), torch.zeros(2)
    value = remembered((a, b), ("key",), lambda: [1])
    assert remembered((a, b), ("key",), lambda: [2]) is value
    assert remembered((a, b), ("other",), lambda: [3]) == [3]
    assert remembered((b, a), ("key",), lambda: [4]) == [4]
    assert len(_remembered._KNOWN) == 3
    del a
    gc.collect()
    assert not _remembered._KNOWN


def test_the_number_is_bounded() -> None:
    tensors = [torch.zeros(1) for _ in range(2 * _remembered._MOST)]
    for tensor in tensors:
        remembered((tensor,), (), object)
    assert len(_remembered._KNOWN) == _remembered._MOST


def test_of_other_objects_nothing_is_remembered() -> None:
    _remembered._KNOWN.clear()
    for thing in ([1], torch.eye(3).to_sparse(), torch.nn.Parameter(torch.zeros(2))):
        assert remembered((thing,), (), object) is not remembered((thing,), (), object)

    class Special(Tensor):
        pass

    special = torch.zeros(2).as_subclass(Special)
    assert remembered((special,), (), object) is not remembered((special,), (), object)
    assert not _remembered._KNOWN
