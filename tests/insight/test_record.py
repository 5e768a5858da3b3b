"""What is recorded is what was computed, and nothing changes for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from graphattn import attend, patterns
from graphattn._watch import watching
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.insight import RELEVANCES, LayerRecord, perron_cosines, record, token_relevance
from graphattn.mechanisms import MultiheadAttention
from graphattn.mechanisms.infsa import infsa
from graphattn.mechanisms.linear_infsa import source_scores
from graphattn.models.image import VisionTransformer
from graphattn_kernels import backends


@pytest.fixture(autouse=True)
def _gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)


def model_of(attention: str, graph: str = "complete", **options: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=3,
        embed_dim=16,
        depth=2,
        num_heads=2,
        attention=attention,
        attention_options=dict(options),
        graph=graph,
    ).eval()


IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("graph", ["complete", "grid"])
@pytest.mark.parametrize(
    ("attention", "options"),
    [("softmax", {}), ("graph_transformer", {}), ("infsa", {}), ("infsa", {"hops": 3}), ("linear_infsa", {})],
)
@torch.no_grad()
def test_every_layer_is_recorded_and_gives_the_same_bits(attention: str, options: dict, graph: str) -> None:
    model = model_of(attention, graph, **options)
    before = model(IMAGES)
    with record(model) as layers:
        out = model(IMAGES)
    assert torch.equal(out, before) and not watching()
    assert [entry.layer for entry in layers] == ["blocks.0.attn", "blocks.1.attn"]
    for entry in layers:
        assert entry.graph.num_edges == model.token_graph().num_edges
        assert entry.q.shape == entry.k.shape == (3, 17, 2, 8)
        if attention == "linear_infsa":
            assert entry.weights is None
            torch.testing.assert_close(entry.sources, source_scores(entry.graph, entry.q, entry.k))
        elif attention == "infsa":
            found = infsa(entry.graph, entry.q, entry.k, entry.k, 1.0, need_weights=True)
            torch.testing.assert_close(entry.weights, found.weights)
        else:
            found = attend(entry.graph, entry.q, entry.k, entry.k, need_weights=True)
            torch.testing.assert_close(entry.weights, found.weights)


def test_calls_outside_a_module_and_gradients() -> None:
    graph, layer = patterns.complete(5), MultiheadAttention(8, 2)
    x = torch.randn(5, 8)
    with record(layer) as layers:
        attend(graph, *torch.randn(3, 5, 2, 4))
        layer(x, graph)[0].sum().backward()
    assert [entry.layer for entry in layers] == ["", ""]
    assert all(not entry.weights.requires_grad for entry in layers)
    with pytest.raises(ZeroDivisionError), record(layer) as layers:
        layer(x, graph)
        raise ZeroDivisionError
    assert len(layers) == 1 and not watching() and not layer._forward_hooks and not layer._forward_pre_hooks


def test_two_models_in_one_block_and_a_module_that_fails() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = MultiheadAttention(8, 2), MultiheadAttention(8, 2)

        def forward(self, x: torch.Tensor, graph: TokenGraph) -> torch.Tensor:
            try:
                self.a(x[:, :3], graph)
            except ArgumentError:
                pass
            return self.b(x, graph)[0]

    net = Net()
    with record(net) as layers:
        net(torch.randn(5, 8), patterns.complete(5))
    assert [entry.layer for entry in layers] == ["b"]


@torch.no_grad()
def test_relevance_of_tokens() -> None:
    model = model_of("softmax")
    with record(model) as layers:
        model(IMAGES)
    for how in RELEVANCES:
        relevance = token_relevance(layers, how)
        assert relevance.shape == (3, 17) and bool((relevance >= 0).all())
        torch.testing.assert_close(relevance.sum(1), torch.ones(3))
    weights = torch.stack([entry.weights.unflatten(1, (17, 17)) for entry in layers])  # [layer, B, t, s, H]
    torch.testing.assert_close(token_relevance(layers, "received"), weights.mean((0, 2, 4)))
    torch.testing.assert_close(token_relevance(layers, "first", over="last"), weights[1, :, 0].mean(-1))
    assert not torch.allclose(token_relevance(layers, "pagerank"), token_relevance(layers, "received"), atol=1e-6)
    for arguments, text in (
        ((layers, "rank"), "how must be one of"),
        (([], "katz"), "layers must hold at least one"),
        (
            ([*layers, LayerRecord("", patterns.complete(5), None, None, torch.rand(3, 25, 2), None)],),
            "of one size, got",
        ),
    ):
        with pytest.raises(ArgumentError, match=text):
            token_relevance(*arguments)


@pytest.mark.parametrize("how", list(RELEVANCES))
@pytest.mark.parametrize("axes", ["h", "b", "bh"])
@torch.no_grad()
def test_relevance_where_images_or_heads_have_graphs_of_their_own(axes: str, how: str) -> None:
    chance = torch.Generator().manual_seed(1)
    reads = torch.rand(*(3, 2)[axes == "h" : len(axes) + (axes == "h")], 6, 6, generator=chance) < 0.6
    graph = TokenGraph.from_mask(reads, axes)
    weights = torch.rand(graph.num_edges, 1 if "h" in axes else 2, generator=chance).double() / 8

    def relevance(graph: TokenGraph, weights: Tensor) -> Tensor:
        return token_relevance([LayerRecord("", graph, None, None, weights, None)], how)

    own = weights.split(reads.flatten(0, -3).sum((1, 2)).tolist())
    alone = [relevance(TokenGraph.from_mask(mask), part) for mask, part in zip(reads.flatten(0, -3), own, strict=True)]
    expected = torch.stack(alone).unflatten(0, reads.shape[:-2])
    torch.testing.assert_close(relevance(graph, weights), expected.mean(-2) if "h" in axes else expected)


@torch.no_grad()
def test_relevance_of_a_rank_one_layer_is_its_score() -> None:
    model = model_of("linear_infsa")
    with record(model) as layers:
        model(IMAGES)
    shares = [entry.sources / entry.sources.sum(1, keepdim=True) for entry in layers]
    torch.testing.assert_close(token_relevance(layers, "katz"), torch.stack(shares).mean((0, 3)))


@torch.no_grad()
def test_cosines_to_the_perron_vectors() -> None:
    """Against dense eigenvectors; and the trend of the sheet: with a common direction, the left one is near."""
    torch.manual_seed(0)
    layer, graph = MultiheadAttention(16, 2), patterns.complete(64)
    x = torch.randn(64, 16)
    for shift, least in ((0.0, 0.0), (2.0, 0.97)):
        with record(layer) as layers:
            layer(x + shift, graph)
        entry = layers[0]
        found = perron_cosines(entry)
        q, k = entry.q.double(), entry.k.double()
        for head in range(2):
            matrix = (q[:, head] @ k[:, head].T).relu()
            scores = source_scores(graph, q, k)[:, head]
            for side, got in (("left", found.left[head]), ("right", found.right[head])):
                values, vectors = torch.linalg.eig(matrix.T if side == "left" else matrix)
                vector = vectors[:, values.abs().argmax()].real.abs()
                expected = torch.cosine_similarity(scores, vector, dim=0)
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert float(found.left.min()) > least and float(found.left.mean()) > float(found.right.mean())
    with record(layer) as layers:
        attend(graph, None, None, torch.randn(64, 1, 2), score=torch.randn(64 * 64, 1))
    with pytest.raises(ArgumentError, match="must have queries and keys"):
        perron_cosines(layers[0])
