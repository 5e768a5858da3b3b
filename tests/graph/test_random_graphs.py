"""Random regular graphs and expanders keep their promises."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.graph import connected_components, expander, random_regular


@pytest.mark.parametrize(
    ("tokens", "degree"),
    [
        (0, 0),
        (1, 0),
        (5, 0),
        (2, 1),
        (4, 1),
        (5, 2),
        (6, 3),
        (6, 4),
        (6, 5),
        (7, 4),
        (9, 8),
        (20, 11),
        (40, 3),
        (200, 6),
    ],
)
def test_regular(tokens: int, degree: int) -> None:
    for seed in range(5):
        graph = random_regular(tokens, degree, torch.Generator().manual_seed(seed))
        assert graph.num_tokens == tokens and graph.num_edges == tokens * degree
        assert bool((graph.in_degree == degree).all()) and bool((graph.out_degree == degree).all())
        assert graph.is_symmetric and not graph.has_self_loops and not graph.has_duplicates
        assert graph.edge_id is None, "target-major"


def test_regular_graphs_come_out_alike() -> None:
    # There are 15 perfect matchings of 6 tokens and 70 labelled 2-regular graphs of 6 tokens.
    generator = torch.Generator().manual_seed(0)
    for degree, kinds in ((1, 15), (2, 70)):
        draws = 20 * kinds
        seen: dict[str, int] = {}
        for _ in range(draws):
            key = str(random_regular(6, degree, generator).col.tolist())
            seen[key] = seen.get(key, 0) + 1
        assert len(seen) == kinds
        expected = draws / kinds
        chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
        # Close to uniform: a few times what chance alone would give (kinds - 1).
        assert chi_square < 3 * kinds


@pytest.mark.parametrize(("tokens", "degree"), [(0, 2), (1, 2), (2, 2), (3, 3), (5, 4), (50, 2), (50, 5), (300, 6)])
def test_expander(tokens: int, degree: int) -> None:
    for seed in range(5):
        graph = expander(tokens, degree, torch.Generator().manual_seed(seed))
        assert graph.num_tokens == tokens
        assert graph.is_symmetric and not graph.has_self_loops and not graph.has_duplicates
        assert bool((graph.in_degree <= degree).all())
        assert tokens == 0 or int(connected_components(graph).max()) == 0, "connected, always"


@pytest.mark.parametrize("make", [expander, random_regular])
def test_spectral_gap(make) -> None:
    # Friedman (2003): the second eigenvalue is at most 2 sqrt(d - 1) + epsilon with high probability.
    for seed in range(3):
        adjacency = make(400, 6, torch.Generator().manual_seed(seed)).to_dense().double()
        values = torch.linalg.eigvalsh(adjacency).abs().sort().values
        assert values[-1] <= 6 + 1e-9
        assert values[-2] < 2 * 5**0.5 + 0.3


@pytest.mark.parametrize("make", [expander, random_regular])
def test_generator_decides(make) -> None:
    first, second, other = (make(30, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.edge_index, second.edge_index)
    assert not torch.equal(first.edge_index, other.edge_index)


def test_device() -> None:
    assert expander(4, 2, device="cpu").device.type == random_regular(4, 3, device="cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: random_regular(5, 3), r"num_tokens \* degree must be even .*got 5 \* 3"),
        (lambda: random_regular(5, 5), r"degree must be 0 to num_tokens - 1 \(4\), got 5"),
        (lambda: random_regular(5, -1), r"degree must be 0 to num_tokens - 1 \(4\), got -1"),
        (lambda: random_regular(-1, 0), "num_tokens must not be negative, got -1"),
        (lambda: expander(5, 1), "degree must be 2 or more .*got 1"),
        (lambda: expander(-5, 2), "num_tokens must not be negative, got -5"),
    ],
)
def test_bad_arguments(call, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        call()
