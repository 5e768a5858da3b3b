"""InfSA: the invariants of the method, and dense float64 by hand as the oracle of every form of graph."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import patterns
from graphattn.attention import AttentionOutput, draw_seed
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import InfSA
from graphattn.mechanisms.infsa import infsa
from graphattn.testing import GRAPH_KINDS, random_graph

H, D, C = 2, 4, 3
EPS = 1e-6
HOPS = pytest.mark.parametrize("hops", [1, 3, None], ids=["one", "three", "all"])


def tokens(targets: int, sources: int | None = None, *leading: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    sources = targets if sources is None else sources
    shapes = (targets, H, D), (sources, H, D), (sources, H, C)
    q, k, v = (torch.randn(*leading, *shape, dtype=torch.float64, generator=random) for shape in shapes)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def discount() -> Tensor:
    return torch.tensor([0.95, 0.6], dtype=torch.float64, requires_grad=True)


def edge_counts(graph: TokenGraph) -> Tensor:
    """How often each target reads each source, ``[T, S]``."""
    source, target = graph.edge_index
    one = torch.ones(len(source), dtype=torch.float64)
    return torch.zeros(graph.num_targets, graph.num_sources, dtype=torch.float64).index_put_(
        (target, source), one, accumulate=True
    )


def adjacency(graph: TokenGraph, q: Tensor, k: Tensor) -> Tensor:
    """A-hat ``[H, T, S]``, of a graph in which each edge is there once."""
    raw = (torch.einsum("thd,shd->hts", q, k) / D).relu() * edge_counts(graph)
    square = raw.square().sum(-1) @ torch.nn.functional.one_hot(graph.target_batch, graph.num_members).double()
    norm = torch.where(square > 0, square.clamp(min=1e-300).sqrt(), 0.0)
    return raw / (norm[:, graph.target_batch, None] + EPS)


def oracle(graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, hops: int | None) -> Tensor:
    step = gamma[:, None, None] * adjacency(graph, q, k)
    if hops is None:
        eye = torch.eye(step.shape[-1], dtype=step.dtype)
        return torch.einsum("hts,shc->thc", torch.linalg.solve(eye - step, step), v)
    total, power = torch.zeros(graph.num_targets, *v.shape[1:], dtype=v.dtype), v
    for _ in range(hops):
        power = torch.einsum("hts,shc->thc", step, power)
        total = total + power
    return total


def check(graph: TokenGraph, hops: int | None, like: TokenGraph | None = None, seed: int = 0) -> None:
    """Value and every gradient equal the oracle's on the graph, or on the list of its edges."""
    leaves = [*tokens(graph.num_targets, graph.num_sources, seed=seed), discount()]
    out = infsa(graph, *leaves, hops=hops)
    expected = oracle(graph if like is None else like, *leaves, hops)
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-10)
    slope = torch.randn_like(out)
    grads = [torch.autograd.grad(y, leaves, slope) for y in (out, expected)]
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)


# --- equal to the oracle ----------------------------------------------------------------------------------------

PATTERNS = {
    "complete": lambda: patterns.complete(9),
    "causal": lambda: patterns.causal(9),
    "blocks of one size": lambda: patterns.blocks([0, 3, 6, 9]),
    "ragged blocks": lambda: patterns.blocks([0, 2, 2, 3, 9]),
    "large ragged blocks": lambda: patterns.blocks([0, 70, 140, 220]),
    "grid": lambda: patterns.grid(3, 3),
    "window and hubs": lambda: patterns.window(9, 1) | patterns.hubs(9, 1),
}


@HOPS
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str, hops: int | None) -> None:
    check(PATTERNS[name](), hops)


@HOPS
@pytest.mark.parametrize("kind", [kind for kind in GRAPH_KINDS if kind != "duplicates"])
def test_lists_of_edges(kind: str, hops: int | None) -> None:
    check(random_graph(3, kind), hops)


@pytest.mark.parametrize("kind", ["sparse", "batch", "empty_rows"])
def test_bipartite(kind: str) -> None:
    check(random_graph(2, kind, bipartite=True), 1)


@pytest.mark.parametrize(
    "graph", [patterns.complete(5, 8), patterns.blocks([0, 2, 4], [0, 3, 6]), patterns.blocks([0, 1, 4], [0, 3, 5])]
)
def test_bipartite_patterns(graph: TokenGraph) -> None:
    check(graph, 1)


@HOPS
@pytest.mark.parametrize("name", ["complete", "causal", "ragged blocks", "blocks of one size", "grid"])
def test_leading_dimensions_share_the_graph(name: str, hops: int | None) -> None:
    graph = PATTERNS[name]()
    q, k, v = tokens(9, None, 2, 3)
    out = infsa(graph, q, k, v, discount(), hops=hops)
    every = [oracle(graph, q[i, j], k[i, j], v[i, j], discount(), hops) for i in range(2) for j in range(3)]
    torch.testing.assert_close(out, torch.stack(every).view(2, 3, 9, H, C), rtol=1e-8, atol=1e-10)


@HOPS
def test_a_graph_for_each_head_and_entry(hops: int | None) -> None:
    graphs = [[random_graph(3, "hub"), random_graph(3, "hub").T] for _ in range(2)]
    stacked = TokenGraph.stack([TokenGraph.per_head(pair) for pair in graphs])
    size = stacked.num_targets
    q, k, v = tokens(size, None, 2)
    gamma = discount()
    out = infsa(stacked, q, k, v, gamma, hops=hops)
    for entry, head in itertools.product(range(2), range(H)):
        rows = (x[entry][:, [head]] for x in (q, k, v))
        expected = oracle(graphs[entry][head], *rows, gamma[[head]], hops)
        torch.testing.assert_close(out[entry][:, [head]], expected, rtol=1e-8, atol=1e-10)
    found = infsa(stacked, q, k, v, gamma, need_weights=True)
    assert isinstance(found, AttentionOutput) and found.weights is not None
    first = slice(*stacked.edge_slices[1:3])  # of the second head
    counts = adjacency(graphs[0][1], q[0][:, [1]], k[0][:, [1]])[0]
    source, target = graphs[0][1].edge_index
    torch.testing.assert_close(found.weights[first, 0], gamma[1] * counts[target, source])


@pytest.mark.parametrize("hops", [1, 3])
def test_weights_and_bias(hops: int) -> None:
    graph = random_graph(1, "batch")
    leaves = [*tokens(graph.num_tokens), discount()]
    found = infsa(graph, *leaves, hops=hops, need_weights=True)
    assert isinstance(found, AttentionOutput) and found.weights is not None
    source, target = graph.edge_index
    expected = (leaves[3][:, None, None] * adjacency(graph, *leaves[:2]))[:, target, source].T
    torch.testing.assert_close(found.weights, expected)
    torch.testing.assert_close(found.out, oracle(graph, *leaves, hops))
    # A bias so low that it forbids every edge into the first member leaves the others as they were.
    low = torch.where(graph.target_batch[target] == 0, -1e9, 0.0).double()
    out = infsa(graph, *leaves, hops=hops, edge_bias=low)
    assert isinstance(out, Tensor) and not out[graph.target_batch == 0].any()
    torch.testing.assert_close(out[graph.target_batch > 0], found.out[graph.target_batch > 0])


@HOPS
@pytest.mark.parametrize("name", ["complete", "causal", "grid"])
def test_gradcheck(name: str, hops: int | None) -> None:
    graph = {"complete": patterns.complete(4), "causal": patterns.causal(4), "grid": patterns.grid(2, 2)}[name]
    assert torch.autograd.gradcheck(lambda *leaves: infsa(graph, *leaves, hops=hops), (*tokens(4), discount()))


def test_dropout_is_the_same_on_a_pattern_and_on_its_edges() -> None:
    graph = patterns.complete(6)
    listed = TokenGraph.from_edge_index(graph.edge_index, 6)
    seed, leaves = draw_seed(torch.Generator().manual_seed(0)), tokens(6)
    for hops in (1, 3):
        outs = [infsa(g, *leaves, hops=hops, dropout_p=0.4, dropout_seed=seed) for g in (graph, listed)]
        torch.testing.assert_close(*outs)
        assert not torch.allclose(outs[0], infsa(graph, *leaves, hops=hops))


# --- invariants -------------------------------------------------------------------------------------------------


def matrix(graph: TokenGraph, q: Tensor, k: Tensor, gamma: float, hops: int | None) -> Tensor:
    """The operator itself, ``[H, N, N]``, from its products with the unit vectors."""
    unit = torch.eye(graph.num_tokens, dtype=q.dtype)[:, None].expand(-1, q.shape[1], -1)
    out = infsa(graph, q, k, unit, gamma, hops=hops)
    assert isinstance(out, Tensor)
    return out.transpose(0, 1)


@pytest.mark.parametrize("name", ["complete", "grid"])
def test_the_series_converges_to_the_closed_form(name: str) -> None:
    graph, gamma = PATTERNS[name](), 0.95
    q, k, _ = tokens(9)
    assert (torch.linalg.matrix_norm(matrix(graph, q, k, 1.0, 1)) < 1).all()
    closed = matrix(graph, q, k, gamma, None)
    for hops in (3, 10, 40):
        tail = torch.linalg.matrix_norm(closed - matrix(graph, q, k, gamma, hops))
        assert (tail <= gamma ** (hops + 1) / (1 - gamma)).all()
    torch.testing.assert_close(matrix(graph, q, k, gamma, 400), closed, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["complete", "causal", "grid"])
def test_the_closed_form_is_the_resolvent(name: str) -> None:
    graph, gamma = PATTERNS[name](), 0.95
    q, k, _ = tokens(9)
    closed, hop = matrix(graph, q, k, gamma, None), matrix(graph, q, k, gamma, 1)
    eye = torch.eye(9, dtype=q.dtype).expand(H, 9, 9)
    torch.testing.assert_close((eye - hop) @ (closed + eye), eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(closed, hop + hop @ closed, rtol=0, atol=1e-10)
    assert (closed >= -1e-12).all()


def test_the_gradient_of_the_resolvent() -> None:
    """dC = F (gamma dA) F, against autograd through the solve of PyTorch."""
    graph = patterns.complete(7)
    q, k, v = tokens(7)
    out, gamma = infsa(graph, q, k, v, 0.9, hops=None), torch.tensor([0.9, 0.9], dtype=q.dtype)
    expected = oracle(graph, q, k, v, gamma, None)
    slope = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad(y, (q, k, v), slope) for y in (out, expected)))


@HOPS
def test_scales_of_queries_and_keys_cancel(hops: int | None) -> None:
    q, k, v = tokens(9)
    for graph in (patterns.complete(9), random_graph(0, "one_token"), PATTERNS["grid"]()):
        n = graph.num_tokens
        first, second = (infsa(graph, a * q[:n], b * k[:n], v[:n], hops=hops) for a, b in ((1, 1), (7, 300)))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)  # but for eps


def test_no_discount_no_output() -> None:
    leaves = tokens(9)
    for graph, hops in itertools.product((patterns.complete(9), PATTERNS["grid"]()), (1, 3, None)):
        tiny, tinier = (infsa(graph, *leaves, gamma, hops=hops).abs().max() for gamma in (1e-6, 1e-9))
        assert 0 < tinier < 2e-3 * tiny < 1e-5


@HOPS
@pytest.mark.parametrize("name", ["complete", "causal", "ragged blocks", "grid"])
def test_all_scores_negative_is_exactly_zero_with_finite_gradients(name: str, hops: int | None) -> None:
    graph = PATTERNS[name]()
    q, k, v = tokens(9)
    q, k = q.detach().abs().requires_grad_(), -k.detach().abs().requires_grad_()
    gamma = discount()
    out = infsa(graph, q, k, v, gamma, hops=hops)
    assert not out.any()
    for grad in torch.autograd.grad(out.sum(), (q, v, gamma)):
        assert grad.isfinite().all()


def test_a_matrix_of_rank_one() -> None:
    """With A+ = u w^T the spectral radius is u.w / (|u| |w|), and Katz's index is along u."""
    graph = patterns.complete(8)
    u, w = torch.rand(2, 8, 1, 1, dtype=torch.float64) + 0.1
    ones = torch.ones_like(u)
    hop = matrix(graph, u, w, 1.0, 1)[0]
    radius = (u * w).sum() / (u.norm() * w.norm())
    torch.testing.assert_close(torch.linalg.eigvals(hop).abs().max(), radius, rtol=1e-5, atol=0)
    katz = infsa(graph, u, w, ones, 0.9, hops=None)
    assert isinstance(katz, Tensor)
    torch.testing.assert_close(torch.cosine_similarity(katz.flatten(), u.flatten(), 0), ones.flatten()[0])


@HOPS
@pytest.mark.parametrize("name", ["ragged blocks", "blocks of one size", "large ragged blocks", "list"])
def test_members_do_not_mix(name: str, hops: int | None) -> None:
    graph = random_graph(0, "batch") if name == "list" else PATTERNS[name]()
    q, k, v = tokens(graph.num_tokens)
    first = graph.target_batch == 0
    alone = infsa(graph, q, k, v, hops=hops)
    other = [torch.where(first[:, None, None], x, 50 * x + 1) for x in (q, k, v)]
    changed = infsa(graph, *other, hops=hops)
    torch.testing.assert_close(changed[first], alone[first], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(changed[~first], alone[~first])


@HOPS
def test_causal_attention_moves_only_by_the_norm(hops: int | None) -> None:
    """Values of later tokens are never read; their scores count in the norm, which is one number for the sequence."""
    graph, cut = patterns.causal(9), 5
    q, k, v = tokens(9)
    changed = torch.cat([v[:cut], v[cut:] + 3])
    torch.testing.assert_close(*(infsa(graph, q, k, x, hops=hops)[:cut] for x in (v, changed)))
    if hops == 1:
        other = torch.cat([k[:cut], k[cut:] * 2])
        first, second = (infsa(graph, q, x, v)[:cut].transpose(0, 1).flatten(1) for x in (k, other))
        cosine = torch.cosine_similarity(first, second)  # of each head: one factor for all of its numbers
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
        assert (first.norm(dim=1) / second.norm(dim=1) > 1.01).all()


# --- the module -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [1, 3, None])
@pytest.mark.parametrize("rescale", [False, True])
def test_a_padded_batch_is_its_entries(hops: int | None, rescale: bool) -> None:
    layer = InfSA(8, 2, hops=hops, rescale=rescale).double()
    lengths = [6, 1, 4]
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    ragged = layer(x[mask], patterns.blocks([0, 6, 7, 11]))[0]
    x[~mask] = 1e6
    padded, edge = layer(x, patterns.complete(6), mask=mask)
    assert edge is None
    torch.testing.assert_close(padded[mask], ragged)
    torch.testing.assert_close(padded[~mask], layer.out.bias.expand(7, 8))
    single = torch.cat([layer(x[i, :n], patterns.complete(n))[0] for i, n in enumerate(lengths)])
    torch.testing.assert_close(ragged, single)


def test_rescale_is_the_root_of_the_number_of_tokens() -> None:
    plain, scaled = InfSA(8, 2, bias=False), InfSA(8, 2, bias=False, rescale=True)
    scaled.load_state_dict(plain.state_dict())
    x, graph = torch.randn(11, 8), patterns.blocks([0, 2, 11])
    factor = torch.tensor([2.0] * 2 + [9.0] * 9).sqrt()[:, None]
    torch.testing.assert_close(scaled(x, graph)[0], plain(x, graph)[0] * factor)


def test_gamma_starts_where_told_learns_for_each_head_and_can_be_fixed() -> None:
    layer = InfSA(8, 2, gamma=0.9)
    torch.testing.assert_close(layer.gamma(), torch.tensor([0.9, 0.9]))
    assert InfSA(8, 2).gamma().sub(0.95).abs().max() < 1e-6
    layer(torch.randn(5, 8), patterns.complete(5))[0].sum().backward()
    assert layer.gamma.theta.grad is not None and (layer.gamma.theta.grad != 0).all()
    fixed = InfSA(8, 2, gamma=0.9, learn_gamma=False)
    assert not any("gamma" in name for name, _ in fixed.named_parameters()) and "gamma.theta" in fixed.state_dict()
    with torch.no_grad():
        layer.gamma.theta.zero_()
    layer.reset_parameters()
    torch.testing.assert_close(layer.gamma(), torch.tensor([0.9, 0.9]))


def test_edge_rows_add_to_the_score_before_the_maximum() -> None:
    graph = random_graph(1, "hub")
    layer = InfSA(8, 2, edge_width=3).double()
    x, edge = torch.randn(graph.num_tokens, 8).double(), torch.randn(graph.num_edges, 3).double()
    q, k, v = (p(x).view(-1, 2, 4) for p in (layer.query, layer.key, layer.value))
    (source, target), n = graph.edge_index, graph.num_tokens
    score = ((q[target] * k[source]).sum(-1) / 4 + edge @ layer.edge.weight.T).relu()
    weight = 0.95 * score / (score.square().sum(0).sqrt() + EPS)
    heads = torch.zeros(n, 2, 4).double().index_add(0, target, weight[..., None] * v[source])
    torch.testing.assert_close(layer(x, graph, edge)[0], layer.out(heads.flatten(1)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("hops", [1, 3, None])
@pytest.mark.parametrize("name", ["complete", "causal", "ragged blocks", "grid"])
def test_autocast(name: str, hops: int | None) -> None:
    # A member of one token would be all or nothing by the sign of one product.
    graph = patterns.blocks([0, 4, 9]) if name == "ragged blocks" else PATTERNS[name]()
    layer = InfSA(32, 2, hops=hops)
    x = torch.randn(9, 32)
    exact = layer(x, graph)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(x, graph)[0]
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, rtol=0.05, atol=0.03)
    mixed.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("name", ["complete", "causal", "ragged blocks", "list"])
def test_compiled_whole(name: str, hops: int) -> None:
    graph = random_graph(1, "batch") if name == "list" else PATTERNS[name]()
    torch._dynamo.reset()
    layer = InfSA(8, 2, hops=hops)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(graph.prepare().num_tokens, 8, requires_grad=True)
    results = []
    for module in (layer, compiled):
        out = module(x, graph)[0]
        results.append((out, *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(*results)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["complete", "causal"])
def test_nothing_of_the_size_of_all_pairs_is_made(name: str) -> None:
    n = 4096
    graph = {"complete": patterns.complete, "causal": patterns.causal}[name](n)
    q, k, v = (torch.randn(n, 1, 8, requires_grad=True) for _ in range(3))
    saved: list[int] = []

    def save(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
            out = infsa(graph, q, k, v)
        torch.autograd.grad(out.sum(), (q, k, v))
    assert saved and max(saved) <= 8 * n
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < n * n * 4 / 4


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "hops": ({"hops": 0}, "hops must be a positive number, or None for all, got 0"),
    "gamma": ({"gamma": 1.0}, "gamma must lie between 0 and 1, got 1.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    with pytest.raises(ArgumentError, match=BAD[name][1]):
        InfSA(8, 2, **BAD[name][0])


def test_bad_inputs() -> None:
    layer, graph, x = InfSA(8, 2), patterns.complete(4), torch.zeros(4, 8)
    with pytest.raises(
        ArgumentError, match="mask must be bool \\[4\\], one entry for each token, got torch.bool \\[3\\]"
    ):
        layer(x, graph, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="made without edge rows, got edge=\\[16, 3\\]"):
        layer(x, graph, torch.zeros(16, 3))
    with pytest.raises(ArgumentError, match="mask and edge rows do not go together"):
        InfSA(8, 2, 3)(x, graph, torch.zeros(16, 3), mask=torch.ones(4, dtype=torch.bool))
    q, k, v = tokens(4)
    with pytest.raises(ArgumentError, match="gamma must be a number or a tensor \\[H\\], got \\[2, 1\\]"):
        infsa(graph, q, k, v, torch.zeros(2, 1))
    bipartite = patterns.complete(3, 4)
    for hops in (2, None):
        with pytest.raises(ArgumentError, match="square"):
            infsa(bipartite, q[:3], k, v, hops=hops)


def test_the_discounts_of_the_published_configuration() -> None:
    """sigmoid(theta) = 0.95 in the released code; theta is its logit."""
    assert math.isclose(InfSA(4, 1).gamma.theta.item(), math.log(19), rel_tol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("hops", [1, 3], ids=["one", "three"])
def test_a_number_as_discount_goes_into_a_cuda_graph(hops: int) -> None:
    """It is not copied to the device."""
    graph = patterns.complete(300, device="cuda")
    q, k, v = (torch.randn(300, 2, 16, device="cuda") for _ in range(3))
    infsa(graph, q, k, v, 0.9, hops=hops)
    torch.cuda.synchronize()
    capture = torch.cuda.CUDAGraph()
    with torch.cuda.graph(capture):
        out = infsa(graph, q, k, v, 0.9, hops=hops)
    q.normal_()
    capture.replay()
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out, infsa(graph, q, k, v, torch.tensor(0.9, device="cuda"), hops=hops))
