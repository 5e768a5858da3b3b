"""A generated graph whose classes are only to be told by who is linked to whom."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn_datasets.text_graphs import EgoTrees, TextGraph

__all__ = ["KINDS", "mixing_graph", "told_by_links", "told_by_nodes"]

KINDS = 4
"""Kinds of members, and classes: the ways in which kinds mix."""


def mixing_graph(
    centres: int = 7000,
    members: int = 500,
    *,
    links: int = 8,
    degree: int = 14,
    noise: float = 0.5,
    spread: float = 0.3,
    width: int = 16,
    seed: int = 0,
) -> TextGraph:
    """A stochastic block model of *mixing rules*, with a set of centres that ask which rule holds around them.

    A member of class y and kind x (both 0 to 3) is linked to members of class y and kind x XOR y, but for a share of
    ``noise``, whose kind is any. So class 0 is homophilous, the others are heterophilous, each in its own way, and all
    kinds are equally frequent everywhere: no set of nodes tells the class, only pairs of linked ones do. A centre has
    no kind and is linked to members of its class. Which kind it is can be read from a member's features.

    Args:
        centres: Nodes to classify, 60 / 20 / 20 % for training, validation and test.
        members: Members of each class and kind.
        links: Members that a centre is linked to.
        degree: Mean number of members that a member is linked to.
        noise: Share of links between members that follow no rule.
        spread: Deviation of the noise on features.
        width: Features.
        seed: Of everything.
    """
    generator = torch.Generator().manual_seed(seed)
    number = KINDS * KINDS * members  # a member is (class, kind, index)

    def draw(high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(high, size, generator=generator)

    member = torch.arange(number)
    rule, kind = member // (KINDS * members), member // members % KINDS
    source = member.repeat_interleave(degree // 2)
    by_rule = kind[source] ^ rule[source]
    other = torch.where(torch.rand(len(source), generator=generator) < noise, draw(KINDS, by_rule.shape), by_rule)
    target = (rule[source] * KINDS + other) * members + draw(members, source.shape)
    y = draw(KINDS, (centres,))
    asked = (y.repeat_interleave(links) * KINDS * members) + draw(KINDS * members, (centres * links,))
    asking = number + torch.arange(centres).repeat_interleave(links)
    edges = torch.cat([torch.stack([source, target]), torch.stack([asking, asked])], 1)
    edges = edges[:, edges[0] != edges[1]]

    x = spread * torch.randn(number + centres, width, generator=generator)
    x[member, kind] += 1.0
    x[number:, KINDS] += 1.0
    split = torch.full((number + centres,), -1)
    split[number:] = torch.tensor([0] * 6 + [1] * 2 + [2] * 2).repeat(-(-centres // 10))[:centres]
    labels = torch.cat([torch.full((number,), -1), y])
    blank = TextGraph("mixing", torch.zeros(len(x) + 1, dtype=torch.int64), edges.new_zeros(0), x, labels)
    graph = blank.with_edges(edges)
    graph.classes, graph.split = tuple(f"rule {n}" for n in range(KINDS)), split
    return graph


def told_by_links(graph: TextGraph, trees: EgoTrees) -> Tensor:
    """What counting rules along the links of trees says, int64 ``[B]``: about the best that can be done."""
    kind = _kinds(graph, trees.node)
    above = kind.gather(1, trees.parent.clamp(min=0))
    counts = (trees.depth == 2) & (kind >= 0) & (above >= 0)
    rule = torch.where(counts, kind ^ above, KINDS)
    return torch.nn.functional.one_hot(rule, KINDS + 1)[..., :KINDS].sum(1).argmax(1)


def told_by_nodes(graph: TextGraph, trees: EgoTrees) -> Tensor:
    """Counts of kinds at each depth, ``[B, 2 * KINDS]``: all that a model knows that sees nodes and depths only."""
    kind = _kinds(graph, trees.node)
    found = []
    for depth in (1, 2):
        here = torch.where((trees.depth == depth) & (kind >= 0), kind, KINDS)
        found.append(torch.nn.functional.one_hot(here, KINDS + 1)[..., :KINDS].sum(1))
    return torch.cat(found, 1)


def _kinds(graph: TextGraph, node: Tensor) -> Tensor:
    """The kind of each node, -1 for centres and where there is none."""
    members = int((graph.y < 0).sum())
    kind = node // (members // (KINDS * KINDS)) % KINDS
    return torch.where((node >= 0) & (node < members), kind, -1)
