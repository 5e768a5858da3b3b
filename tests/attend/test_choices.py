"""The four choices: scores, normalisers, propagators of one's own, ready scores, rules for a bias, patterns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graphattn import patterns
from graphattn.attention import attend, edge_weights
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.normalize import Normalizer
from graphattn.propagate import AttentionOperator, Propagator
from graphattn.score import DotScore, Score
from graphattn.testing import assert_backends_equal, check_score, random_graph
from graphattn_kernels import segment_sum, spread

Draw = Callable[..., Tensor]
H, D, D_V = 2, 4, 3


def inputs(graph: TokenGraph, draw: Draw, *lead: int) -> list[Tensor]:
    t, s = graph.num_targets, graph.num_sources
    return [draw(*lead, t, H, D), draw(*lead, s, H, D), draw(*lead, s, H, D_V)]


class Additive(Score):
    """GATv2 (Brody et al. 2022, eq. 7): a . LeakyReLU(q + k (+ edge)), with a vector for each head."""

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.attention = nn.Parameter(torch.linspace(-1, 1, heads * channels).reshape(heads, channels))

    def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
        total = q_target + k_source if edge is None else q_target + k_source + edge
        return (nn.functional.leaky_relu(total, 0.2) * self.attention).sum(-1)


# --- scores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge_channels", [None, D], ids=["no-edge-rows", "edge-rows"])
def test_a_score_of_ones_own(edge_channels: int | None) -> None:
    check_score(Additive(H, D), heads=H, channels=D, edge_channels=edge_channels)


def test_check_score_finds_a_wrong_score() -> None:
    class Wrong(DotScore):
        def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
            place = torch.arange(q_target.shape[0], dtype=q_target.dtype)  # depends on the order of the edges
            return super().edge(q_target, k_source, edge) * place[:, None, None]

    with pytest.raises(AssertionError, match="edge order"):
        check_score(Wrong())


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
def test_an_additive_score_against_its_formula(lead: tuple[int, ...], draw: Draw) -> None:
    graph = random_graph(2, "hub", bipartite=True)
    q, k, v = inputs(graph, draw, *lead)
    score = Additive(H, D).double()
    source, target = graph.edge_index
    logits = (nn.functional.leaky_relu(q[..., target, :, :] + k[..., source, :, :], 0.2) * score.attention).sum(-1)
    expected = attend(graph, None, None, v, score=logits)
    torch.testing.assert_close(attend(graph, q, k, v, score=score), expected)
    with_options = attend(graph, q, k, v, score=score, scale=2.0, clamp=1.0)
    torch.testing.assert_close(with_options, attend(graph, None, None, v, score=2 * logits, clamp=1.0))


def test_the_dot_score_by_name_as_a_module_and_edge_by_edge(draw: Draw) -> None:
    class Plain(DotScore):
        fused = None

    class Doubled(DotScore):
        """Another formula: the kernels must not take it for the dot score."""

        def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
            return 2 * super().edge(q_target, k_source, edge)

    graph = random_graph(2, "hub")
    q, k, v = inputs(graph, draw)
    gate = draw(graph.num_edges, H, D)
    expected = attend(graph, q, k, v, edge_gate=gate)
    for score in (DotScore(), Plain()):
        torch.testing.assert_close(attend(graph, q, k, v, score=score, edge_gate=gate), expected)
    doubled = attend(graph, q, k, v, score=Doubled(), edge_gate=gate)
    torch.testing.assert_close(doubled, attend(graph, 2 * q, k, v, edge_gate=gate))


def test_a_ready_score(graph: TokenGraph, draw: Draw) -> None:
    q, k, v = inputs(graph, draw)
    source, target = graph.edge_index
    logits = (q[target] * k[source]).sum(-1) / D**0.5
    torch.testing.assert_close(attend(graph, None, None, v, score=logits), attend(graph, q, k, v))
    shared = attend(graph, None, None, v, score=logits[:, 0])  # one score for all heads
    torch.testing.assert_close(shared, attend(graph, None, None, v, score=logits[:, :1].expand(-1, H)))

    def run(score: Tensor, v: Tensor, bias: Tensor, backend: str) -> Tensor:
        return attend(graph, None, None, v, score=score, edge_bias=bias, clamp=1.0, backend=backend)

    assert_backends_equal(run, logits, v, draw(graph.num_edges))


def test_a_score_of_the_wrong_shape() -> None:
    class Flat(Score):
        def edge(self, q_target: Tensor, k_source: Tensor, edge: Tensor | None) -> Tensor:
            return q_target.sum((-1, -2))

    graph = random_graph(0)
    x = torch.zeros(graph.num_tokens, H, D)
    with pytest.raises(ArgumentError, match="score Flat must return one number for each edge and head"):
        attend(graph, x, x, x, score=Flat())


# --- normalisers and propagators ------------------------------------------------------------------------------


def test_sigmoid(graph: TokenGraph, draw: Draw) -> None:
    q, k, v = inputs(graph, draw)
    source, target = graph.edge_index
    weights = ((q[target] * k[source]).sum(-1) / D**0.5).sigmoid()
    result = attend(graph, q, k, v, normalizer="sigmoid", need_weights=True)
    torch.testing.assert_close(result.weights, weights)
    torch.testing.assert_close(result.out, segment_sum(graph.structure, weights.unsqueeze(-1) * v[source]))
    assert_backends_equal(
        lambda q, k, v, backend: attend(graph, q, k, v, normalizer="sigmoid", backend=backend), q, k, v
    )


class Share(Normalizer):
    """Squares, divided by their sum over the edges that leave the same source."""

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        squares = scores.square()
        total = segment_sum(graph.structure.T, squares, backend=backend)
        return squares / spread(graph.structure.T, total, backend=backend)


class TwoHops(Propagator):
    """A v + A A v."""

    def forward(self, operator: AttentionOperator, values: Tensor) -> Tensor:
        once = operator.matmul(values)
        return once + operator.matmul(once)


def test_a_normaliser_of_ones_own(draw: Draw) -> None:
    graph = random_graph(2, "hub")
    q, k, v = inputs(graph, draw)
    weights = attend(graph, q, k, v, normalizer=Share(), need_weights=True).weights
    total = torch.zeros(graph.num_tokens, H, dtype=q.dtype).index_add(0, graph.edge_index[0], weights)
    torch.testing.assert_close(total, (graph.out_degree > 0).to(q.dtype).unsqueeze(1).expand_as(total))


def test_a_propagator_of_ones_own(draw: Draw) -> None:
    graph = random_graph(2, "duplicates")
    q, k, v = inputs(graph, draw)
    weights = edge_weights(graph, q, k)
    source, target = graph.edge_index
    dense = torch.zeros(H, graph.num_tokens, graph.num_tokens, dtype=q.dtype)
    for h in range(H):
        dense[h].index_put_((target, source), weights[:, h], accumulate=True)
    once = torch.einsum("hts,shd->thd", dense, v)
    expected = once + torch.einsum("hts,shd->thd", dense, once)
    torch.testing.assert_close(attend(graph, q, k, v, propagator=TwoHops()), expected)


# --- a bias given as a rule -----------------------------------------------------------------------------------

SLOPES = torch.tensor([0.5, 0.25], dtype=torch.float64)


def alibi(target: Tensor, source: Tensor, head: Tensor) -> Tensor:
    """Press et al. 2022: minus the distance, times a slope for each head."""
    return -SLOPES[head] * (target - source).abs()


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
def test_alibi_on_a_causal_graph_is_dense_alibi(lead: tuple[int, ...], draw: Draw) -> None:
    n = 7
    graph = patterns.causal(n)
    q, k, v = inputs(graph, draw, *lead)
    place = torch.arange(n)
    distance = (place[:, None] - place).abs()
    logits = torch.einsum("...thd,...shd->...hts", q, k) / D**0.5 - SLOPES[:, None, None] * distance
    dense = logits.masked_fill(place[:, None] < place, float("-inf")).softmax(-1)
    expected = torch.einsum("...hts,...shd->...thd", dense, v)
    torch.testing.assert_close(attend(graph, q, k, v, edge_bias=alibi), expected)


def test_a_rule_is_the_tensor_of_its_values(graph: TokenGraph, draw: Draw) -> None:
    q, k, v = inputs(graph, draw)
    source, target = graph.edge_index
    values = alibi(target[:, None], source[:, None], torch.arange(H))
    for options in ({}, {"need_weights": True}, {"normalizer": "sigmoid"}):
        got = attend(graph, q, k, v, edge_bias=alibi, **options)
        torch.testing.assert_close(got, attend(graph, q, k, v, edge_bias=values, **options))
    torch.testing.assert_close(edge_weights(graph, q, k, edge_bias=alibi), edge_weights(graph, q, k, edge_bias=values))


def test_the_gradient_of_a_learned_table(draw: Draw) -> None:
    """A table over relative positions, as in Swin or T5."""
    n = 6
    graph = patterns.window(n, 2)
    q, k, v = inputs(graph, draw)
    table = draw(2 * n - 1, H).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda table: attend(graph, q, k, v, edge_bias=lambda t, s, h: table[t - s + n - 1, h]), table
    )


def test_a_rule_counts_tokens_and_heads_inside_each_copy(draw: Draw) -> None:
    members = [random_graph(1, "hub"), random_graph(1, "self_loops")]
    n = members[0].num_tokens
    assert members[1].num_tokens == n
    q, k, v = inputs(members[0], draw)

    per_head = attend(TokenGraph.per_head(members), q, k, v, edge_bias=alibi)
    each = [attend(member, q, k, v, edge_bias=alibi)[:, h : h + 1] for h, member in enumerate(members)]
    torch.testing.assert_close(per_head, torch.cat(each, 1))

    q, k, v = inputs(members[0], draw, 2)
    stacked = attend(TokenGraph.stack(members), q, k, v, edge_bias=alibi)
    each = [attend(member, q[b], k[b], v[b], edge_bias=alibi) for b, member in enumerate(members)]
    torch.testing.assert_close(stacked, torch.stack(each))


def test_a_rule_takes_the_dtype_of_the_tokens() -> None:
    graph = random_graph(1)
    x = torch.randn(graph.num_tokens, H, D)
    assert attend(graph, x, x, x, edge_bias=alibi).dtype == torch.float32


@pytest.mark.parametrize("value", [torch.zeros(3, 7), 1.0, None], ids=["shape", "number", "none"])
def test_a_rule_that_returns_something_else(value: object) -> None:
    graph = random_graph(1)
    x = torch.zeros(graph.num_tokens, H, D)
    with pytest.raises(ArgumentError, match="edge_bias\\(target, source, head\\) must return a tensor"):
        attend(graph, x, x, x, edge_bias=lambda target, source, head: value)


# --- patterns -------------------------------------------------------------------------------------------------

_PATTERNS = {
    "complete": lambda: patterns.complete(6),
    "complete-bipartite": lambda: patterns.complete(3, 5),
    "causal": lambda: patterns.causal(7),
    "longformer": lambda: patterns.window(9, 1) | patterns.hubs(9, 2),
    "difference": lambda: patterns.complete(6) - patterns.causal(6),
    "grid": lambda: patterns.grid(3, 4),
    "transposed": lambda: patterns.causal(6).T,
}


@pytest.mark.parametrize("name", _PATTERNS)
def test_a_pattern_is_the_graph_of_its_edges(name: str, draw: Draw) -> None:
    pattern = _PATTERNS[name]()
    place = torch.arange(max(pattern.num_targets, pattern.num_sources))
    mask = pattern.contains(place[: pattern.num_targets, None], place[: pattern.num_sources])
    target, source = mask.nonzero(as_tuple=True)  # target-major with ascending sources
    explicit = TokenGraph.from_edge_index(
        torch.stack([source, target]), num_targets=pattern.num_targets, num_sources=pattern.num_sources
    )
    leaves = [x.requires_grad_() for x in [*inputs(pattern, draw), draw(pattern.num_edges, H)]]
    q, k, v, bias = leaves
    got = attend(pattern, q, k, v, edge_bias=bias, need_weights=True, need_lse=True)
    expected = attend(explicit, q, k, v, edge_bias=bias, need_weights=True, need_lse=True)
    torch.testing.assert_close(tuple(got), tuple(expected))
    torch.testing.assert_close(attend(pattern, q, k, v, edge_bias=bias), expected.out)
    slope = draw(*got.out.shape)
    torch.testing.assert_close(
        torch.autograd.grad(got.out, leaves, slope), torch.autograd.grad(expected.out, leaves, slope)
    )


def test_a_complete_graph_is_ordinary_attention(draw: Draw) -> None:
    q, k = draw(2, 8, H, D), draw(2, 8, H, D)
    v = draw(2, 8, H, D)
    expected = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(attend(patterns.complete(8), q, k, v), expected)
    causal = nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    torch.testing.assert_close(attend(patterns.causal(8), q, k, v), causal.transpose(1, 2))


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"score": "dots"}, "unknown score 'dots'; did you mean 'dot'"),
        ({"normalizer": "sofmax"}, "unknown normalizer 'sofmax'; did you mean 'softmax'"),
        ({"propagator": "onehop"}, "unknown propagator 'onehop'; did you mean 'one_hop'"),
        ({"backend": "cuda"}, "backend must be 'auto' or one of"),
        ({"backend": "cuda", "need_weights": True}, "backend must be 'auto' or one of"),
    ],
    ids=str,
)
def test_unknown_names(choice: dict, text: str) -> None:
    graph = random_graph(0)
    x = torch.zeros(graph.num_tokens, H, D)
    with pytest.raises(ArgumentError, match=text):
        attend(graph, x, x, x, **choice)


@pytest.mark.parametrize("choice", ["score", "normalizer", "propagator"])
def test_neither_a_name_nor_a_module(choice: str) -> None:
    graph = random_graph(0)
    x = torch.zeros(graph.num_tokens, H, D)
    with pytest.raises(ArgumentTypeError, match=f"{choice} must be a name.*got int"):
        attend(graph, x, x, x, **{choice: 3})
