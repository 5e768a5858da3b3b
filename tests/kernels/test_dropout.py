"""The counter-based mask: a function of seed, edge and head alone."""

from __future__ import annotations

import pytest
import torch

from graphattn.testing import random_graph
from graphattn_kernels import csr_attention, segment_sum, spread
from graphattn_kernels._random import dropout_scale

EDGES, HEADS = 20_000, 8


def mask(seed: tuple[int, int], p: float = 0.3, edges: torch.Tensor | None = None) -> torch.Tensor:
    edges = torch.arange(EDGES) if edges is None else edges
    return dropout_scale(torch.tensor(seed), edges, HEADS, p, torch.float64)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_frequency_and_values(p: float) -> None:
    factor = mask((1, 2), p)
    values = factor.unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - p)], dtype=torch.float64))
    # Five standard deviations of a binomial, over all weights and in each head.
    spread_all = 5 * (p * (1 - p) / factor.numel()) ** 0.5
    assert (factor == 0).double().mean().item() == pytest.approx(p, abs=spread_all)
    assert ((factor == 0).double().mean(0) - p).abs().max() < spread_all * HEADS**0.5


def test_the_seed_decides() -> None:
    assert torch.equal(mask((1, 2)), mask((1, 2)))
    for other in [(1, 3), (2, 2)]:
        agree = (mask((1, 2)) == mask(other)).double().mean()
        assert agree.item() == pytest.approx(0.7**2 + 0.3**2, abs=0.01)  # as independent masks do


def test_heads_and_neighbouring_edges_are_uncorrelated() -> None:
    kept = (mask((3, 4), 0.5) > 0).double()
    between_heads = torch.corrcoef(kept.T)
    assert (between_heads - torch.eye(HEADS)).abs().max() < 0.05
    lagged = torch.corrcoef(torch.stack([kept[:-1].flatten(), kept[1:].flatten()]))[0, 1]
    assert lagged.abs() < 0.02


def test_it_depends_on_the_edge_number_not_on_its_place() -> None:
    order = torch.randperm(EDGES)
    assert torch.equal(mask((1, 2), edges=order), mask((1, 2))[order])
    assert torch.equal(mask((1, 2), edges=order.int()), mask((1, 2), edges=order))


def test_edge_numbers_beyond_32_bits_are_told_apart() -> None:
    far = torch.arange(EDGES) + 2**32
    assert (mask((1, 2), edges=far) != mask((1, 2))).any()


@pytest.mark.parametrize("backend", ["gather", "reference"])
def test_attention_drops_weights_and_keeps_the_expectation(backend: str) -> None:
    graph = random_graph(1, "dense")
    structure = graph.structure
    random = torch.Generator().manual_seed(0)
    q = torch.randn(graph.num_tokens, 2, 4, dtype=torch.float64, generator=random)
    values = torch.ones(graph.num_tokens, 2, 1, dtype=torch.float64)

    def run(seed: int) -> torch.Tensor:
        return csr_attention(
            structure, q, q, values, dropout_p=0.25, dropout_seed=torch.tensor([seed, 0]), backend=backend
        )[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    mean = torch.stack([run(seed) for seed in range(300)]).mean(0)
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=0, atol=0.1)


def test_the_mask_of_attention_is_the_documented_function() -> None:
    """Weights times ``dropout_scale`` of the caller's edge numbers, whatever order the kernels walk in."""
    graph = random_graph(5, "hub")
    structure, seed = graph.structure, torch.tensor([9, 9])
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(graph.num_tokens, 3, 4, dtype=torch.float64, generator=random) for _ in range(3))
    out, lse = csr_attention(structure, q, k, v, dropout_p=0.5, dropout_seed=seed, backend="gather")
    source, target = graph.edge_index
    scores = (q[target] * k[source]).sum(-1) / 2
    weights = (scores - spread(structure, lse)).exp()
    weights = weights * dropout_scale(seed, torch.arange(graph.num_edges), 3, 0.5, torch.float64)
    torch.testing.assert_close(out, segment_sum(structure, weights.unsqueeze(-1) * v[source]))
