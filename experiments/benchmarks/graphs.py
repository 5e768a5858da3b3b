"""The graphs of the workloads, drawn from a seed on the device where they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from graphattn.graph import TokenGraph
from graphattn.graph.csr import Csr
from graphattn.graph.patterns import causal, complete, hubs, neighbourhood, window

__all__ = [
    "Graph",
    "complete_graph",
    "equal_degrees",
    "image_grid",
    "molecules",
    "power_law_directed",
    "power_law_undirected",
    "random_masks",
    "sequence",
]

Rule = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Graph:
    """A graph in the forms that the libraries want: a list of edges, a rule, or dense masks.

    Args:
        num_tokens: Number of tokens (of one copy, where copies differ).
        edge_index: int64 ``[2, E]``, sources and targets, sorted by target: the order that serves scatters best.
        ptr: int64 ``[B + 1]``, the members of a ragged batch.
        rule: ``rule(target, source)`` says whether the target may read the source.
        mask: bool ``[batch, heads, N, N]`` (targets, sources), where each entry of the batch and each head has a
            graph of its own.
        pattern: The library's name for this graph, where it has one.
        device: Where the edges of a rule are enumerated.
        is_dense: So many edges that a reference had better not list them.
    """

    num_tokens: int
    edge_index: Tensor | None = None
    ptr: Tensor | None = None
    rule: Rule | None = None
    mask: Tensor | None = None
    pattern: Callable[[], TokenGraph] | None = None
    device: torch.device | None = None
    is_dense: bool = False

    def token_graph(self) -> TokenGraph:
        """The graph as the library holds it, made anew."""
        if self.pattern is not None:
            return self.pattern()
        if self.mask is not None:
            batch, heads, n, _ = self.mask.shape
            found = self.mask.reshape(-1, n).nonzero()
            # Tokens of the copies are numbered on, copy after copy.
            col = found[:, 1] + found[:, 0].div(n, rounding_mode="floor") * n
            degree = self.mask.reshape(-1, n).sum(1)
            rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
            csr = Csr(rowptr.int(), col.int(), None)
            return TokenGraph(csr, num_targets=n, num_sources=n, leading=(batch, heads), leading_axes="bh")
        assert self.edge_index is not None
        return TokenGraph.from_edge_index(self.edge_index, self.num_tokens, ptr=self.ptr, validate=False)

    @cached_property
    def edges(self) -> Tensor:
        """``edge_index``, enumerated where the graph is a rule."""
        if self.edge_index is not None:
            return self.edge_index
        assert self.rule is not None, "masks of their own for each head have no one list of edges"
        token, parts = torch.arange(self.num_tokens, device=self.device), []
        for some in token.split(1024):
            row, source = self.rule(some[:, None], token[None, :]).nonzero(as_tuple=True)
            parts.append(torch.stack([source, some[row]]))
        return torch.cat(parts, 1)

    @cached_property
    def rowptr(self) -> Tensor:
        """int64 ``[N + 1]``: the edges of target t are ``edges[:, rowptr[t]:rowptr[t + 1]]``."""
        degree = torch.bincount(self.edges[1], minlength=self.num_tokens)
        return torch.cat([degree.new_zeros(1), degree.cumsum(0)])

    @cached_property
    def dense(self) -> Tensor:
        """bool ``[N, N]`` or, with masks, ``[batch, heads, N, N]``: may the target (row) read the source?"""
        if self.mask is not None:
            return self.mask
        if self.rule is not None and self.edge_index is None:
            token = torch.arange(self.num_tokens, device=self.device)
            return self.rule(token[:, None], token[None, :])
        dense = torch.zeros(self.num_tokens, self.num_tokens, dtype=torch.bool, device=self.edges.device)
        dense[self.edges[1], self.edges[0]] = True
        return dense

    @property
    def num_edges(self) -> int:
        """Number of edges, all copies together."""
        return int(self.mask.sum()) if self.mask is not None else self.edges.shape[1]


def power_law_undirected(num_tokens: int, num_pairs: int, seed: int, device: torch.device) -> Graph:
    """A citation-like graph without locality: ``num_pairs`` distinct pairs, one end drawn ~ (i + 1)^-0.75, the other
    uniform, ids shuffled; both directions of each pair, and self loops."""
    generator = _generator(seed, device)
    cdf = _power_law(num_tokens, 1.0, 0.75, device)
    keys = torch.empty(0, dtype=torch.int64, device=device)
    while keys.shape[0] < num_pairs:
        count = int((num_pairs - keys.shape[0]) * 1.1) + 16
        one = _draw(cdf, count, generator)
        other = torch.randint(num_tokens, (count,), generator=generator, device=device)
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        keys = torch.cat([keys, (low * num_tokens + high)[low != high]]).unique()
    keys = keys[torch.randperm(keys.shape[0], generator=generator, device=device)[:num_pairs]]
    name = torch.randperm(num_tokens, generator=generator, device=device)
    low, high = name[keys.div(num_tokens, rounding_mode="floor")], name[keys % num_tokens]
    token = torch.arange(num_tokens, device=device)
    return _from_edges(torch.cat([low, high, token]), torch.cat([high, low, token]), num_tokens)


def power_law_directed(num_tokens: int, num_edges: int, seed: int, device: torch.device) -> Graph:
    """A product-like graph: both ends of every edge ~ (i + 10)^-0.5, ids shuffled, no loops."""
    generator = _generator(seed, device)
    cdf = _power_law(num_tokens, 10.0, 0.5, device)
    name = torch.randperm(num_tokens, generator=generator, device=device)
    source, target = name[_draw(cdf, num_edges, generator)], name[_draw(cdf, num_edges, generator)]
    source = torch.where(source == target, (source + 1) % num_tokens, source)
    return _from_edges(source, target, num_tokens)


def equal_degrees(num_tokens: int, num_edges: int, seed: int, device: torch.device) -> Graph:
    """As many tokens and edges, but every token reads and is read by as many (give or take one)."""
    generator = _generator(seed, device)
    rounds = -(-num_edges // num_tokens)
    target = torch.arange(num_tokens, device=device).repeat(rounds)[:num_edges]
    source = torch.cat([torch.randperm(num_tokens, generator=generator, device=device) for _ in range(rounds)])
    return _from_edges(source[:num_edges], target, num_tokens)


def molecules(num_graphs: int, seed: int, device: torch.device, smallest: int = 12) -> Graph:
    """Random trees of ``smallest`` to ``smallest + 26`` tokens with 2 to 4 rings (six bonds a token at most), both
    directions."""
    generator = torch.Generator().manual_seed(seed)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    pairs, ptr = [], [0]
    for _ in range(num_graphs):
        size, bonds = smallest + below(27), set()
        degree = [0] * size
        for token in range(1, size):
            other = below(token)
            while degree[other] >= 4:
                other = below(token)
            bonds.add((other, token))
            degree[other], degree[token] = degree[other] + 1, degree[token] + 1
        wanted = size - 1 + 2 + below(3)
        while len(bonds) < wanted:
            one, other = sorted((below(size), below(size)))
            if one != other and (one, other) not in bonds and max(degree[one], degree[other]) < 6:
                bonds.add((one, other))
                degree[one], degree[other] = degree[one] + 1, degree[other] + 1
        pairs += [(ptr[-1] + one, ptr[-1] + other) for one, other in sorted(bonds)]
        ptr.append(ptr[-1] + size)
    one, other = torch.tensor(pairs).T
    graph = _from_edges(torch.cat([one, other]), torch.cat([other, one]), ptr[-1])
    assert graph.edge_index is not None
    return Graph(ptr[-1], graph.edge_index.to(device), torch.tensor(ptr, device=device))


def sequence(num_tokens: int, width: int, num_global: int, is_causal: bool, device: torch.device) -> Graph:
    """A window with global tokens in front (Longformer): ``width`` tokens round each token, or before it."""
    reach = width if is_causal else width // 2

    def rule(target: Tensor, source: Tensor) -> Tensor:
        near = (target - source <= reach) & (source - target <= reach)
        seen = near | (source < num_global) | (target < num_global)
        return seen & (source <= target) if is_causal else seen

    def pattern() -> TokenGraph:
        seen = window(num_tokens, reach, device=device) | hubs(num_tokens, num_global, device=device)
        return seen & causal(num_tokens, device=device) if is_causal else seen

    return Graph(num_tokens, rule=rule, pattern=pattern, device=device)


def image_grid(height: int, width: int, kernel: int, device: torch.device) -> Graph:
    """Every pixel reads the ``kernel`` x ``kernel`` pixels round it; at the border the square is moved inside, so that
    all read equally many (the rule of NATTEN)."""
    found = neighbourhood(height, width, kernel, device=device)
    graph = Graph(height * width, found.edge_index, device=device, rule=found.contains)
    graph.pattern = lambda: neighbourhood(height, width, kernel, device=device)
    return graph


def random_masks(batch: int, heads: int, n: int, density: float, seed: int, device: torch.device) -> Graph:
    """Unstructured masks, another for each entry of the batch and each head; every token reads itself."""
    mask = torch.rand(batch, heads, n, n, generator=_generator(seed, device), device=device) < density
    mask.diagonal(dim1=-2, dim2=-1).fill_(True)
    return Graph(n, mask=mask, is_dense=True)


def complete_graph(num_tokens: int, device: torch.device) -> Graph:
    """Everybody reads everybody."""
    return Graph(
        num_tokens,
        rule=lambda target, source: (target >= 0) & (source >= 0),
        pattern=lambda: complete(num_tokens, device=device),
        device=device,
        is_dense=True,
    )


def _from_edges(source: Tensor, target: Tensor, num_tokens: int) -> Graph:
    order = (target * num_tokens + source).argsort()
    return Graph(num_tokens, torch.stack([source[order], target[order]]))


def _generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def _power_law(n: int, shift: float, exponent: float, device: torch.device) -> Tensor:
    weight = (torch.arange(n, dtype=torch.float64, device=device) + shift) ** -exponent
    return weight.cumsum(0) / weight.sum()


def _draw(cdf: Tensor, count: int, generator: torch.Generator) -> Tensor:
    x = torch.rand(count, dtype=torch.float64, generator=generator, device=cdf.device)
    return torch.searchsorted(cdf, x).clamp_(max=cdf.shape[0] - 1)
