"""Sums over maps: columns, edges and graphs of all leading dimensions give what the dense matrix gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphattn import TokenGraph
from graphattn.errors import ArgumentError
from graphattn.insight import (
    AttentionDistance,
    Columns,
    DistanceProfile,
    Edges,
    KeptMaps,
    ReceivedAttention,
    SkewedLines,
    attention_distance,
    fai,
    received_attention,
    u_shape,
    waad,
)
from graphattn.insight.maps import MapPart

N = 9


def some_maps(*leading: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Softmax maps over random support (with an empty row) and that support."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(*leading, N, N, generator=generator) < 0.5
    allowed[..., 3, :] = False
    scores = torch.randn(*leading, N, N, generator=generator, dtype=torch.float64)
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num(0.0), allowed


def as_edges(weights: Tensor, allowed: Tensor, axes: str) -> Edges:
    """The same map as edges: ``weights [..., H, N, N]`` on a graph for all, or with leading dimensions."""
    copies = allowed.reshape(-1, N, N)
    if not axes:
        graph = TokenGraph.from_adj_t(copies[0])
        source, target = graph.edge_index
        return Edges(graph, weights[..., target, source].movedim(-1, -2))
    graphs = [TokenGraph.from_adj_t(x) for x in copies]
    if axes == "bh":
        graph = TokenGraph.stack([TokenGraph.per_head(graphs[i : i + 2]) for i in range(0, len(graphs), 2)])
    else:
        graph = TokenGraph.stack(graphs) if axes == "b" else TokenGraph.per_head(graphs)
    flat, found = graph.edge_index, weights.reshape(-1, 2, N, N) if axes == "b" else weights.reshape(-1, 1, N, N)
    copy = flat[1] // N
    return Edges(graph, found[copy, :, flat[1] % N, flat[0] % N])


CASES = {
    "": ((3, 2), (), ""),  # batch and heads share a graph
    "b": ((3, 2), (3, 1), "b"),
    "h": ((2,), (2,), "h"),
    "bh": ((3, 2), (3, 2), "bh"),
}


@pytest.mark.parametrize("case", CASES)
def test_edges_and_columns_are_the_dense_map(case: str) -> None:
    shape, own, axes = CASES[case]
    _, allowed = some_maps(*own)
    scores = torch.randn(*shape, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    allowed = allowed.expand(*shape, N, N)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num(0.0)
    generator = torch.Generator().manual_seed(2)
    batch = (3, 1) if len(shape) == 2 else ()
    targets = torch.rand(*batch, N, generator=generator) < 0.7
    distance = torch.randint(-1, 5, (*batch, N, N), generator=generator)
    order = torch.randint(-1, 6, (*batch, N), generator=generator)

    even = allowed.double() / allowed.sum(-1, keepdim=True).clamp(min=1)
    pieces = [
        Columns(weights[..., a:b], even=even[..., a:b], first=a, num_sources=N) for a, b in ((0, 4), (4, 5), (5, 9))
    ]
    at_edges = as_edges(weights, allowed if axes != "b" else allowed[:, :1], axes)
    assert at_edges.leading == shape
    for make in (
        lambda: ReceivedAttention(targets),
        lambda: ReceivedAttention(where=distance > 1, lift=True),
        lambda: fai(1, 3),
        lambda: waad(4),
        lambda: AttentionDistance(distance),
        lambda: DistanceProfile(distance, 3),
        lambda: SkewedLines(order),
        SkewedLines,
    ):
        found = []
        for parts in ([Columns(weights, allowed)], pieces, [at_edges]):
            reducer = make()
            for part in parts:
                reducer.update(part)
            found.append(reducer.result())
        for other in found[1:]:
            torch.testing.assert_close(other, found[0])

    # and the first of them by hand
    readers = allowed & targets.unsqueeze(-1)
    expected = (weights * readers).sum(-2) / readers.sum(-2).clamp(min=1)
    torch.testing.assert_close(received_attention(weights, allowed, targets=targets), expected)
    profile = DistanceProfile(distance, 3)
    profile.update(at_edges)
    for hop in range(3):
        here = distance == hop
        torch.testing.assert_close(profile.result().weight[..., hop], (weights * here).sum(-1))
        torch.testing.assert_close(profile.result().even[..., hop], (even * here).sum(-1))


def test_received_of_a_hand_made_map() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.2, 0.3]])
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    torch.testing.assert_close(
        received_attention(weights, causal), torch.tensor([1.75 / 3, 0.475, 0.3], dtype=torch.float64)
    )
    even = causal / causal.sum(1, keepdim=True)
    assert torch.allclose(received_attention(even, causal, lift=True), torch.ones(3, dtype=torch.float64))
    assert torch.equal(received_attention(weights), received_attention(weights, weights != 0))


def test_fai_of_uniform_attention_and_its_bound() -> None:
    n, low, high = 30, 2, 7
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    weights = causal / causal.sum(1, keepdim=True)
    reducer = fai(low, high)
    reducer.update(Columns(weights, causal))
    found = reducer.result()
    for s in (0, 11, 25, 28):
        readers = [t for t in range(n) if low <= t - s <= high]
        expected = sum(1 / (t + 1) for t in readers) / max(1, len(readers))
        assert float(found.attention[s]) == pytest.approx(expected) and int(found.readers[s]) == len(readers)
    # the numerators of a row sum to at most 1, so all of them to at most n
    assert float((found.attention * found.readers).sum()) <= n


def test_waad_has_its_closed_forms() -> None:
    n, window = 25, 6
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    even = causal.double() / causal.sum(1, keepdim=True)
    found = attention_distance(even, causal, at_most=window)
    expected = [sum(min(x, window) for x in range(t + 1)) / (t + 1) for t in range(n)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert attention_distance(torch.eye(n), at_most=window).abs().max() == 0
    weights, allowed = some_maps(2)
    found = attention_distance(weights, allowed, at_most=3)
    assert found.min() >= 0 and found.max() <= 3


def test_u_shape() -> None:
    flat = torch.ones(20)
    assert float(u_shape(flat)) == 1.0
    curve = flat.clone()
    curve[[0, 1, -2, -1]] = 3.0
    assert float(u_shape(curve)) == 3.0
    assert u_shape(torch.rand(4, 3, 20)).shape == (4, 3)
    with pytest.raises(ArgumentError, match="between its ends"):
        u_shape(torch.ones(2))


def test_bad_arguments_are_named() -> None:
    part: MapPart = Columns(torch.rand(2, N, N))
    with pytest.raises(ArgumentError, match="values of targets must broadcast"):
        part.at_targets(torch.ones(4))
    with pytest.raises(ArgumentError, match="weights must be floating"):
        Columns(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(ArgumentError, match=r"weights must be \[..., 2, H\]"):
        Edges(TokenGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]])), torch.ones(3, 1))
    with pytest.raises(ArgumentError, match="part of a map"):
        ReceivedAttention().result()
    with pytest.raises(ArgumentError, match="low and high"):
        fai(5, 2)
    with pytest.raises(ArgumentError, match="at_most"):
        waad(0)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 2, 3)])
def test_kept_maps_are_means_over_heads(leading: tuple[int, ...]) -> None:
    weights, _ = some_maps(*leading)
    kept = KeptMaps(2)
    kept.update(Columns(weights))
    batched = weights if len(leading) > 1 else weights.reshape(1, -1, N, N)
    torch.testing.assert_close(kept.result(), batched.flatten(0, -4)[:2].mean(1))


@pytest.mark.parametrize("axes", ["", "h", "b", "bh"])
def test_edges_of_nobody(axes: str) -> None:
    leading = {"": (), "h": (2,), "b": (3,), "bh": (3, 2)}[axes]
    graph = TokenGraph.from_mask(torch.zeros(*leading, 4, 5, dtype=torch.bool), axes)
    heads = 1 if axes.endswith("h") else 2
    reducer = ReceivedAttention(targets=torch.ones(4, dtype=torch.bool), where=torch.ones(4, 5, dtype=torch.bool))
    reducer.update(Edges(graph, torch.zeros(0, heads)))
    shape = (*(leading if axes.endswith("h") else (*leading, heads)), 5)
    assert reducer.result().attention.shape == shape and not reducer.result().attention.any()
