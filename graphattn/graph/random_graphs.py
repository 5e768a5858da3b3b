"""Random sparse graphs that mix fast: regular graphs and expanders, as explicit graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph.token_graph import TokenGraph

__all__ = ["expander", "random_regular"]

_ROUNDS = 100  # of repair before a new start; a few suffice on graphs of any size


def random_regular(
    num_tokens: int,
    degree: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
) -> TokenGraph:
    """A random symmetric graph in which every token reads, and is read by, exactly ``degree`` other tokens.

    Stubs are paired at random (Bollobás, 1980) and what comes out as a self-loop or twice is mended by random
    switches (McKay & Wormald, 1990), which is close to uniform over all such graphs.

    Args:
        num_tokens: Number of tokens.
        degree: Sources of each token, 0 to ``num_tokens - 1``; ``num_tokens * degree`` must be even.
        generator: Source of randomness; default: torch's global one.
        device: Where the graph lives; default: torch's default device.

    Returns:
        A graph without self-loops or duplicates, target-major with ascending sources.

    Raises:
        ArgumentError: If there is no such graph.
    """
    if num_tokens < 0:
        raise ArgumentError(f"num_tokens must not be negative, got {num_tokens}")
    if not 0 <= degree <= max(num_tokens - 1, 0):
        raise ArgumentError(f"degree must be 0 to num_tokens - 1 ({num_tokens - 1}), got {degree}")
    if num_tokens * degree % 2:
        raise ArgumentError(
            f"num_tokens * degree must be even (each pair is read both ways), got {num_tokens} * {degree}"
        )
    # The complement of a dense regular graph is a sparse one, which is quick to draw.
    dense = degree > (num_tokens - 1) // 2
    pairs = _regular_pairs(num_tokens, num_tokens - 1 - degree if dense else degree, generator)
    graph = _both_ways(pairs, num_tokens, device)
    if dense:
        from graphattn.graph.patterns import complete, window

        device = graph.device
        graph = complete(num_tokens, device=device) - window(num_tokens, 0, device=device) - graph
    return graph


def expander(
    num_tokens: int,
    degree: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
) -> TokenGraph:
    """A connected, symmetric graph of low degree and small diameter: a union of random Hamiltonian cycles
    (Friedman, 2003; Shirzad et al., 2023, "Exphormer").

    Args:
        num_tokens: Number of tokens.
        degree: Largest number of sources of a token, 2 or more: ``degree // 2`` cycles and, where it is odd, a
            random matching. Where they overlap, tokens have fewer; see :func:`random_regular` for exact degrees.
        generator: Source of randomness; default: torch's global one.
        device: Where the graph lives; default: torch's default device.

    Returns:
        A graph without self-loops or duplicates, target-major with ascending sources.
    """
    if degree < 2:
        raise ArgumentError(f"degree must be 2 or more (less does not connect the tokens), got {degree}")
    if num_tokens < 0:
        raise ArgumentError(f"num_tokens must not be negative, got {num_tokens}")
    pairs = []
    for _ in range(degree // 2):
        order = _permutation(num_tokens, generator)
        pairs.append(torch.stack([order, order.roll(1)]))
    if degree % 2:
        order = _permutation(num_tokens - num_tokens % 2, generator)
        pairs.append(order.view(2, num_tokens // 2))
    return _both_ways(torch.cat(pairs, dim=1), num_tokens, device)


def _regular_pairs(num_tokens: int, degree: int, generator: torch.Generator | None) -> Tensor:
    """Unordered pairs ``[2, num_tokens * degree / 2]`` in which each token appears ``degree`` times."""
    while True:
        stubs = _permutation(num_tokens * degree, generator) // max(degree, 1)
        pairs = stubs.view(2, num_tokens * degree // 2)
        for _ in range(_ROUNDS):
            bad = _bad(pairs, num_tokens)
            if not bool(bad.any()):
                return pairs
            pairs = _switch(pairs, bad, num_tokens, generator)


def _key(pairs: Tensor, num_tokens: int) -> Tensor:
    return pairs.amin(0) * num_tokens + pairs.amax(0)


def _bad(pairs: Tensor, num_tokens: int) -> Tensor:
    """Self-loops, and pairs that are there already."""
    key, order = _key(pairs, num_tokens).sort(stable=True)
    again = torch.zeros_like(key, dtype=torch.bool)
    again[order[1:]] = key[1:] == key[:-1]
    return again | (pairs[0] == pairs[1])


def _switch(pairs: Tensor, bad: Tensor, num_tokens: int, generator: torch.Generator | None) -> Tensor:
    """Exchange ends between each bad pair and a random good one, where both results are new pairs."""
    good = (~bad).nonzero().flatten()
    good = good[_permutation(good.shape[0], generator)]
    wrong = bad.nonzero().flatten()[: good.shape[0]]
    partner = good[: wrong.shape[0]]
    first = torch.stack([pairs[0, wrong], pairs[0, partner]])
    second = torch.stack([pairs[1, wrong], pairs[1, partner]])
    both = torch.cat([first, second], dim=1)
    key = _key(both, num_tokens)
    proposed_twice = _bad(both, num_tokens)
    refused = proposed_twice | torch.isin(key, _key(pairs, num_tokens))
    accept = ~refused.view(2, wrong.shape[0]).any(0)
    switched = pairs.clone()
    switched[:, wrong[accept]] = first[:, accept]
    switched[:, partner[accept]] = second[:, accept]
    return switched


def _both_ways(pairs: Tensor, num_tokens: int, device: torch.device | str | None) -> TokenGraph:
    device = torch.empty(0, device=device).device
    pairs = pairs[:, pairs[0] != pairs[1]].to(device)
    edge_index = torch.cat([pairs, pairs.flip(0)], dim=1)
    return TokenGraph.from_edge_index(edge_index, num_tokens, validate=False).coalesce()


def _permutation(size: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else "cpu"
    return torch.randperm(size, generator=generator, device=device)
