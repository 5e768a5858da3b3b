"""Linear-InfSA: the published formulas and loops over tokens in float64 as oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn import patterns
from graphattn.attention import draw_seed
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.mechanisms import LinearInfSA
from graphattn.mechanisms.infsa import infsa
from graphattn.mechanisms.linear_infsa import causal_linear_infsa, linear_infsa, source_scores
from graphattn.testing import GRAPH_KINDS, random_graph

H, D, C = 2, 4, 3
EPS = 1e-6
CHOICES = pytest.mark.parametrize(("side", "steps"), [("left", 1), ("left", 3), ("right", 1), ("right", 2)])


def tokens(targets: int, sources: int | None = None, *leading: int, shift: float = 0.0) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    sources = targets if sources is None else sources
    shapes = (targets, H, D), (sources, H, D), (sources, H, C)
    rows = [torch.randn(*leading, *shape, dtype=torch.float64, generator=random) for shape in shapes]
    return [(x + shift).requires_grad_() for x in rows]


def discount() -> Tensor:
    return torch.tensor([0.95, 0.6], dtype=torch.float64, requires_grad=True)


def published(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """The released code, line by line, for one graph of all tokens; only the discount has a gradient."""
    q, k = q / D**0.5, k / D**0.5
    e = q.norm(dim=-1)
    alpha = e / (e.sum(0) + EPS)
    pooled = (alpha.unsqueeze(-1) * q).sum(0)
    a = (pooled * k).sum(-1).relu()
    a = a / (a.sum(0) + EPS)
    context = (gamma[:, None] * a.unsqueeze(-1) * v).sum(0)
    return context.expand(q.shape[0], *context.shape)


def oracle(
    graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, side: str, steps: int, pool: str = "read"
) -> Tensor:
    """Token by token, along the edges."""
    source, target = graph.edge_index.tolist()
    reads: list[list[int]] = [[] for _ in range(graph.num_targets)]
    readers: list[list[int]] = [[] for _ in range(graph.num_sources)]
    for s, t in zip(source, target, strict=True):
        reads[t].append(s)
        readers[s].append(t)
    asks, answers = (q, k) if side == "left" else (k, q)
    asks, answers = asks / D**0.5, answers / D**0.5
    weights = asks.norm(dim=-1)
    for _ in range(steps):
        scores = []
        for s in range(graph.num_sources):
            pooled = reads[s] if pool == "read" else readers[s]
            rows = (weights[pooled, :, None] * asks[pooled]).sum(0)
            rows = rows / (weights[pooled].sum(0) + EPS)[:, None]
            scores.append((rows * answers[s]).sum(-1).relu())
        weights = torch.stack(scores)
    out = [
        gamma[:, None] * (weights[near, :, None] * v[near]).sum(0) / (weights[near].sum(0) + EPS)[:, None]
        for near in reads
    ]
    return torch.stack(out)


def same(out: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-10)
    slope = torch.randn_like(out)
    grads = [torch.autograd.grad(y, leaves, slope) for y in (out, expected)]
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)


# --- equal to the oracles ---------------------------------------------------------------------------------------

PATTERNS = {
    "complete": lambda: patterns.complete(9),
    "causal": lambda: patterns.causal(9),
    "blocks of one size": lambda: patterns.blocks([0, 3, 6, 9]),
    "ragged blocks": lambda: patterns.blocks([0, 2, 2, 3, 9]),
    "grid": lambda: patterns.grid(3, 3),
    "causal window": lambda: patterns.window(9, 2, causal=True),
}


def test_a_complete_graph_is_the_released_code() -> None:
    leaves = [*tokens(9, shift=0.3), discount()]
    same(linear_infsa(patterns.complete(9), *leaves), published(*leaves), leaves)


@CHOICES
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str, side: Any, steps: int) -> None:
    graph, leaves = PATTERNS[name](), [*tokens(9, shift=0.3), discount()]
    same(linear_infsa(graph, *leaves, side=side, steps=steps), oracle(graph, *leaves, side, steps), leaves)


@CHOICES
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_a_number_as_the_discount_is_a_tensor_of_it(leading: Any, name: str, side: Any, steps: int) -> None:
    graph, leaves, options = PATTERNS[name](), tokens(9, None, *leading, shift=0.3), {"side": side, "steps": steps}
    both = [
        linear_infsa(graph, *leaves, gamma, **options) for gamma in (0.7, torch.full((H,), 0.7, dtype=torch.float64))
    ]
    same(*both, leaves)


def test_the_published_form_is_one_node_of_autograd() -> None:
    """More would take more of the host than the device takes for all."""
    leaves = tokens(9, None, 2)
    out = linear_infsa(patterns.complete(9), *leaves, 0.95)
    assert out.stride(1) == 0
    assert [node.variable is x for (node, _), x in zip(out.grad_fn.next_functions, leaves, strict=False)] == [True] * 3


@CHOICES
@pytest.mark.parametrize("kind", GRAPH_KINDS)
def test_lists_of_edges(kind: str, side: Any, steps: int) -> None:
    graph = random_graph(3, kind)
    leaves = [*tokens(graph.num_tokens, shift=0.3), discount()]
    same(linear_infsa(graph, *leaves, side=side, steps=steps), oracle(graph, *leaves, side, steps), leaves)


@pytest.mark.parametrize("steps", [1, 2])
def test_pooling_over_readers_is_the_power_step_of_the_transpose(steps: int) -> None:
    graph = random_graph(1, "hub")
    leaves = [*tokens(graph.num_tokens, shift=0.3), discount()]
    out = linear_infsa(graph, *leaves, steps=steps, pool="readers")
    same(out, oracle(graph, *leaves, "left", steps, "readers"), leaves)
    q, k, _ = tokens(graph.num_tokens, shift=0.3)
    mask = graph.to_dense()
    scores = (torch.einsum("thd,shd->hts", q, k) / D) * mask
    start = (q / D**0.5).norm(dim=-1)
    step = torch.einsum("hts,th->sh", scores, start).relu() / (mask.T.double() @ start + EPS)
    torch.testing.assert_close(source_scores(graph, q, k, pool="readers"), step)


@pytest.mark.parametrize("kind", ["sparse", "batch", "empty_rows", "complete", "blocks"])
def test_bipartite(kind: str) -> None:
    made = {"complete": patterns.complete(5, 8), "blocks": patterns.blocks([0, 2, 5], [0, 3, 4])}
    graph = made[kind] if kind in made else random_graph(2, kind, bipartite=True)
    leaves = [*tokens(graph.num_targets, graph.num_sources, shift=0.3), discount()]
    same(linear_infsa(graph, *leaves), oracle(graph, *leaves, "left", 1, "readers"), leaves)


@CHOICES
@pytest.mark.parametrize("name", PATTERNS)
def test_leading_dimensions_share_the_graph(name: str, side: Any, steps: int) -> None:
    graph, options = PATTERNS[name](), {"side": side, "steps": steps}
    q, k, v = tokens(9, None, 2, 3, shift=0.3)
    every = [linear_infsa(graph, q[i, j], k[i, j], v[i, j], discount(), **options) for i in range(2) for j in range(3)]
    torch.testing.assert_close(
        linear_infsa(graph, q, k, v, discount(), **options), torch.stack(every).view(2, 3, 9, H, C)
    )


def test_a_graph_for_each_head() -> None:
    graphs = [random_graph(3, "hub"), random_graph(3, "hub").T]
    size = graphs[0].num_tokens
    q, k, v = tokens(size, shift=0.3)
    out = linear_infsa(TokenGraph.per_head(graphs), q, k, v)
    for head, graph in enumerate(graphs):
        rows = (x[:, [head]] for x in (q, k, v))
        torch.testing.assert_close(out[:, [head]], linear_infsa(graph, *rows))


@pytest.mark.parametrize("name", ["complete", "causal", "ragged blocks", "grid"])
def test_gradcheck(name: str) -> None:
    graph = {
        "complete": patterns.complete(4),
        "causal": patterns.causal(4),
        "ragged blocks": patterns.blocks([0, 1, 4]),
        "grid": patterns.grid(2, 2),
    }[name]
    for side, steps in (("left", 1), ("right", 2)):
        run = lambda *leaves, side=side, steps=steps: linear_infsa(graph, *leaves, side=side, steps=steps)  # noqa: E731
        assert torch.autograd.gradcheck(run, (*tokens(4, shift=0.5), discount()))


# --- invariants -------------------------------------------------------------------------------------------------


def test_the_output_is_one_row_and_does_not_see_the_order_of_the_keys() -> None:
    q, k, v = tokens(9, shift=0.3)
    graph, order = patterns.complete(9), torch.randperm(9)
    out = linear_infsa(graph, q, k, v)
    torch.testing.assert_close(out, out[:1].expand_as(out), rtol=0, atol=0)
    torch.testing.assert_close(linear_infsa(graph, q[order.flip(0)], k[order], v[order]), out)


def test_it_is_rank_one_and_infsa_of_the_pooled_query() -> None:
    q, k, v = tokens(9, shift=0.3)
    graph, gamma = patterns.complete(9), 0.8
    out = linear_infsa(graph, q, k, v, gamma)
    a = source_scores(graph, q, k)
    a = a / (a.sum(0) + EPS)
    torch.testing.assert_close(out, gamma * torch.einsum("th,sh,shc->thc", torch.ones_like(a), a, v))
    # Queries all the same, rows of weights brought to sum to gamma.
    e = q.norm(dim=-1, keepdim=True)
    pooled = ((e * q).sum(0) / e.sum(0)).expand_as(q)
    ones = torch.ones_like(v[..., :1])
    again, total = infsa(graph, pooled, k, v, 1.0), infsa(graph, pooled, k, ones, 1.0)
    torch.testing.assert_close(out, gamma * again / total, rtol=1e-5, atol=1e-6)


def test_scores_of_rank_one_give_the_left_vector_and_swapped_the_right_one() -> None:
    u, w = torch.rand(2, 8, 1, 1, dtype=torch.float64) + 0.1  # A+ = u w^T
    graph = patterns.complete(8)
    for side, expected in (("left", w), ("right", u)):
        found = source_scores(graph, u, w, side=side).flatten()
        torch.testing.assert_close(torch.cosine_similarity(found, expected.flatten(), 0).item(), 1.0)


def perron(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eig(matrix)
    return vectors[:, values.abs().argmax()].real.abs()


def cosine(x: Tensor, y: Tensor) -> float:
    return torch.cosine_similarity(x.flatten(), y.flatten(), 0).item()


def test_a_step_is_near_the_vector_of_its_side_and_not_of_the_other() -> None:
    """The released code calls the left one's approximation a power iteration for "the" eigenvector."""
    random, graph = torch.Generator().manual_seed(0), patterns.complete(197)
    for _ in range(3):
        q, k = (torch.randn(197, 1, 64, dtype=torch.float64, generator=random) + 0.5 for _ in range(2))
        scores = (q[:, 0] @ k[:, 0].T).relu()
        left, right = perron(scores.T), perron(scores)
        assert cosine(source_scores(graph, q, k), left) > 0.999
        assert cosine(source_scores(graph, q, k, side="right"), right) > 0.999
        assert cosine(source_scores(graph, q, k), right) < 0.97


def test_steps_converge_where_all_scores_are_positive() -> None:
    random, graph = torch.Generator().manual_seed(0), patterns.complete(12)
    q, k = (torch.rand(12, 1, 5, dtype=torch.float64, generator=random) for _ in range(2))
    scores = q[:, 0] @ k[:, 0].T
    for side, vector in (("left", perron(scores.T)), ("right", perron(scores))):
        near = [1 - cosine(source_scores(graph, q, k, side=side, steps=steps), vector) for steps in (1, 3, 12)]
        assert near[0] > near[1] > near[2] and abs(near[2]) < 1e-12


def test_all_scores_negative_is_zero_with_finite_gradients() -> None:
    q, k, v = tokens(9)
    q, k, gamma = q.detach().abs().requires_grad_(), -k.detach().abs().requires_grad_(), discount()
    for make in PATTERNS.values():
        out = linear_infsa(make(), q, k, v, gamma)
        assert not out.any()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, v, gamma)))


@pytest.mark.parametrize("name", ["ragged blocks", "blocks of one size", "list"])
def test_members_do_not_mix(name: str) -> None:
    graph = random_graph(0, "batch") if name == "list" else PATTERNS[name]()
    q, k, v = tokens(graph.num_tokens, shift=0.3)
    first = graph.target_batch == 0
    other = [torch.where(first[:, None, None], x, 50 * x + 1) for x in (q, k, v)]
    before, after = linear_infsa(graph, q, k, v), linear_infsa(graph, *other)
    torch.testing.assert_close(before[first], after[first])
    assert not torch.allclose(before[~first], after[~first])


# --- the causal form --------------------------------------------------------------------------------------------


def test_the_causal_form_by_hand() -> None:
    q, k, v = tokens(7, shift=0.3)
    gamma = discount()
    out = causal_linear_infsa(q, k, v, gamma)
    scaled, e = q / D**0.5, (q / D**0.5).norm(dim=-1)
    for i in range(7):
        numerator, denominator = torch.zeros(H, C).double(), torch.zeros(H).double()
        for j in range(i + 1):
            mean = (e[: j + 1, :, None] * scaled[: j + 1]).sum(0) / (e[: j + 1].sum(0) + EPS)[:, None]
            a = (mean * k[j]).sum(-1).relu() / D**0.5
            numerator, denominator = numerator + a[:, None] * v[j], denominator + a
        torch.testing.assert_close(out[i], gamma[:, None] * numerator / (denominator + EPS)[:, None])
    torch.testing.assert_close(out, linear_infsa(patterns.causal(7), q, k, v, gamma))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_causal_form_does_not_see_the_future(steps: int) -> None:
    leaves = tokens(12, shift=0.3)
    out = causal_linear_infsa(*leaves, steps=steps)
    for cut in (1, 6, 11):
        changed = [torch.cat([x[:cut], torch.randn_like(x[cut:]) * 10]) for x in leaves]
        again = causal_linear_infsa(*changed, steps=steps)
        assert torch.equal(again[:cut], out[:cut]) and not torch.allclose(again[cut:], out[cut:])
    grads = torch.autograd.grad(out[:6].square().sum(), leaves)
    assert all(not grad[6:].any() and grad[:6].any() for grad in grads)


@CHOICES
@pytest.mark.parametrize("name", ["causal", "causal window", "list"])
def test_nothing_leaks_through_a_causal_graph(name: str, side: Any, steps: int) -> None:
    made = patterns.causal(9) if name == "list" else PATTERNS[name]()
    graph = TokenGraph.from_edge_index(made.edge_index, 9) if name == "list" else made
    layer = LinearInfSA(8, 2, side=side, steps=steps).double()
    x = torch.randn(9, 8).double()
    changed = torch.cat([x[:5], torch.randn(4, 8).double() * 10])
    torch.testing.assert_close(layer(changed, graph)[0][:5], layer(x, graph)[0][:5])


# --- the module -------------------------------------------------------------------------------------------------


@CHOICES
def test_a_padded_batch_is_its_entries(side: Any, steps: int) -> None:
    layer = LinearInfSA(8, 2, side=side, steps=steps).double()
    lengths = [6, 1, 4]
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    single = torch.cat([layer(x[i, :n], patterns.complete(n))[0] for i, n in enumerate(lengths)])
    torch.testing.assert_close(layer(x[mask], patterns.blocks([0, 6, 7, 11]))[0], single)
    # Padding that is left out of the graph, and padding that is masked, at whatever value it has.
    keep = [torch.nonzero(row).flatten() for row in mask]
    graphs = [TokenGraph.from_edge_index(torch.cartesian_prod(i, i).T, 6) for i in keep]
    x[~mask] = 1e6
    torch.testing.assert_close(layer(x, TokenGraph.stack(graphs))[0][mask], single)
    padded = layer(x, patterns.complete(6), mask=mask)[0]
    torch.testing.assert_close(padded[mask], single)
    torch.testing.assert_close(padded[~mask], layer.out.bias.expand(7, 8))


@pytest.mark.parametrize("training", [False, True])
def test_one_row_is_projected_once_unless_dropout_is_on_it(training: bool) -> None:
    layer = LinearInfSA(8, 2, dropout=0.5).train(training)
    seen: list[int] = []
    layer.out.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[-2]))
    out, _ = layer(torch.randn(5, 8), patterns.complete(5))
    assert seen == [5 if training else 1] and out.shape == (5, 8)
    assert torch.equal(out[0], out[1]) != training


@pytest.mark.parametrize("name", ["complete", "causal", "grid"])
def test_dropout_drops_a_source_for_all_of_its_readers(name: str) -> None:
    graph, p = PATTERNS[name](), 0.4
    q, k, v = tokens(9, shift=0.3)
    seed = draw_seed(torch.Generator().manual_seed(1))
    unit = torch.eye(9, dtype=torch.float64)[:, None].expand(-1, H, -1)
    dropped, full = (linear_infsa(graph, q, k, unit, dropout_p=x, dropout_seed=seed) for x in (p, 0.0))
    ratio = torch.where(full > 0, dropped / full, torch.nan)  # [T, H, S]
    for head in range(H):
        for source in range(9):
            factors = ratio[:, head, source][~ratio[:, head, source].isnan()]
            if len(factors):
                torch.testing.assert_close(factors, factors[:1].expand_as(factors))
                assert factors[0] < 1e-9 or abs(factors[0] - 1 / (1 - p)) < 1e-9
    assert (ratio.nan_to_num(1.0) < 1e-9).any() and (ratio.nan_to_num(0.0) > 1).any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PATTERNS)
def test_autocast(name: str, side: Any) -> None:
    layer, graph = LinearInfSA(32, 2, side=side), patterns.blocks([0, 4, 9]) if "ragged" in name else PATTERNS[name]()
    x = torch.randn(9, 32) + 0.3
    exact = layer(x, graph)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(x, graph)[0]
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, rtol=0.1, atol=0.1)
    mixed.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", ["complete", "causal", "blocks of one size", "ragged blocks", "list"])
def test_compiled_whole(name: str) -> None:
    graph = random_graph(1, "batch") if name == "list" else PATTERNS[name]()
    torch._dynamo.reset()
    layer = LinearInfSA(8, 2, steps=1 if name in ("complete", "ragged blocks") else 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(graph.prepare().num_tokens, 8, requires_grad=True)
    results = []
    for module in (layer, compiled):
        out = module(x, graph)[0]
        results.append((out, *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])))
    torch.testing.assert_close(*results)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["complete", "causal"])
def test_memory_is_linear(name: str) -> None:
    n = 1 << 16  # 2^32 pairs
    graph = {"complete": patterns.complete, "causal": patterns.causal}[name](n)
    q, k, v = (torch.randn(n, 1, 4, requires_grad=True) for _ in range(3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(linear_infsa(graph, q, k, v).sum(), (q, k, v))
    assert 0 < max(event.self_cpu_memory_usage for event in profile.events()) <= 16 * 4 * n


def test_gamma_learns_for_each_head() -> None:
    layer = LinearInfSA(8, 2, gamma=0.9)
    layer(torch.randn(5, 8), patterns.complete(5))[0].sum().backward()
    assert layer.gamma.theta.grad is not None and (layer.gamma.theta.grad != 0).all()
    assert not any("gamma" in name for name, _ in LinearInfSA(8, 2, learn_gamma=False).named_parameters())


def test_errors() -> None:
    graph, x = patterns.complete(4), torch.zeros(4, 8)
    for options, text in (
        ({"side": "top"}, "side must be 'left' or 'right', got 'top'"),
        ({"steps": 0}, "steps must be a positive number, got 0"),
        ({"edge_width": 3}, "edge_width must be None: LinearInfSA has no use for edge rows, got 3"),
        ({"gamma": 0.0}, "gamma must lie between 0 and 1, got 0.0"),
    ):
        with pytest.raises(ArgumentError, match=text):
            LinearInfSA(8, 2, **options)
    with pytest.raises(ArgumentError, match="edge must be None"):
        LinearInfSA(8, 2)(x, graph, torch.zeros(16, 3))
    with pytest.raises(ArgumentError, match="mask must be bool \\[4\\]"):
        LinearInfSA(8, 2)(x, graph, mask=torch.ones(4))
    q, k, v = tokens(3, 4)
    for options in ({"side": "right"}, {"steps": 2}, {"pool": "read"}):
        with pytest.raises(
            ArgumentError, match="need a graph whose sources are its targets, got 3 targets and 4 sources"
        ):
            linear_infsa(patterns.complete(3, 4), q, k, v, **options)
    with pytest.raises(ArgumentTypeError, match="gamma must be a number or a tensor, got str"):
        linear_infsa(graph, *tokens(4), gamma="0.9")
    for _ in range(2):  # what fits is remembered, what does not is not
        linear_infsa(graph, *tokens(4))
        with pytest.raises(ArgumentError, match="q must be \\[..., 4, H, D\\] for 4 targets"):
            linear_infsa(graph, *tokens(5))
    with pytest.raises(ArgumentError, match="pool must be 'read' for the right side"):
        linear_infsa(graph, *tokens(4), side="right", pool="readers")
    with pytest.raises(ArgumentError, match="q must be \\[..., N, H, D\\], got \\[4, 8\\]"):
        causal_linear_infsa(x, x, x)
