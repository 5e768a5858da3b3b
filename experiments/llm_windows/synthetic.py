"""A generated graph whose classes are only to be told by who is linked to whom."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from graphattn.errors import ArgumentError
from graphattn_datasets.text_graphs import EgoTrees, TextGraph

__all__ = ["KINDS", "kinds_by_depth", "mixing_graph", "told_by_identities", "told_by_links"]

KINDS = 4
"""Kinds of nodes around centres, and classes: the ways in which kinds mix."""


def mixing_graph(
    centres: int = 7000,
    leaves: int = 2000,
    *,
    links: int = 8,
    degree: int = 10,
    noise: float = 0.5,
    seed: int = 0,
) -> TextGraph:
    """A stochastic block model of *mixing rules*, with centres that ask which rule holds around them.

    A centre of class y is linked to ``links`` members of its own, as many of each kind x (0 to 3); a member is linked
    to leaves of kind x XOR y, but for a share of ``noise``, whose kind is any. So class 0 is homophilous, the others
    are heterophilous, each in its own way. Nothing but the links between members and leaves tells the class:

    - no counts of kinds, not by depth either: members are evenly of all kinds, so leaves are drawn alike in all classes
      (where trees hold all ``links`` members);
    - no node by who it is: the members of a test centre are in no training tree, and leaves are shared by all classes;
    - no feature row: all nodes of a kind have the same one;
    - no place in a prompt: members have any number of leaves, so there are no places at which linked nodes stand.

    In a prompt, links are in the window, and in the order of member and leaves: whose leaf a leaf is a network without
    a window has to find out from the member before it.

    Args:
        centres: Nodes to classify, 60 / 20 / 20 % for training, validation and test.
        leaves: Leaves, a quarter of them of each kind.
        links: Members of a centre; a multiple of 4.
        degree: Most leaves of a member; their number is any from 1 on (less where one is drawn twice).
        noise: Share of links to leaves that follow no rule.
        seed: Of everything.

    Returns:
        The graph: members, leaves and centres in this order; features one-hot ``[N, 9]``: the kind of a member, the
        kind of a leaf, or a centre.

    Raises:
        ArgumentError: If ``links`` or ``leaves`` is no multiple of 4.
    """
    for name, value in (("links", links), ("leaves", leaves)):
        if value < KINDS or value % KINDS:
            raise ArgumentError(f"{name} must be a positive multiple of {KINDS}, got {value}")
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(high, size, generator=generator)

    members = centres * links
    y = draw(KINDS, (centres,))
    kind = torch.arange(members) % KINDS
    member = torch.arange(members).repeat_interleave(1 + draw(degree, (members,)))
    by_rule = kind[member] ^ y[member // links]
    free = torch.rand(len(member), generator=generator) < noise
    other = torch.where(free, draw(KINDS, by_rule.shape), by_rule)
    leaf = members + draw(leaves // KINDS, by_rule.shape) * KINDS + other
    centre = members + leaves + torch.arange(members) // links
    edges = torch.stack([torch.cat([member, torch.arange(members)]), torch.cat([leaf, centre])])

    leaf_kind = torch.arange(leaves) % KINDS
    x = one_hot(torch.cat([kind, KINDS + leaf_kind, torch.full((centres,), 2 * KINDS)]), 2 * KINDS + 1).float()
    split = torch.full((len(x),), -1)
    split[-centres:] = torch.tensor([0] * 6 + [1] * 2 + [2] * 2).repeat(-(-centres // 10))[:centres]
    labels = torch.cat([torch.full((members + leaves,), -1), y])
    blank = TextGraph("mixing", torch.zeros(len(x) + 1, dtype=torch.int64), edges.new_zeros(0), x, labels)
    graph = blank.with_edges(edges)
    graph.classes, graph.split = tuple(f"rule {n}" for n in range(KINDS)), split
    return graph


def told_by_links(graph: TextGraph, trees: EgoTrees) -> Tensor:
    """What counting rules along the links of trees says, int64 ``[B]``: about the best that can be done."""
    kind = _kinds(graph, trees)
    above = kind.gather(1, trees.parent.clamp(min=0))
    rule = torch.where(trees.depth == 2, kind ^ above, KINDS)
    return one_hot(rule, KINDS + 1)[..., :KINDS].sum(1).argmax(1)


def told_by_identities(graph: TextGraph, known: EgoTrees, trees: EgoTrees) -> Tensor:
    """What nodes say by who they are, without links, int64 ``[B]``: each node votes for the classes of the known trees
    that it is in, every class weighed by how rare it is there."""
    y = graph.y[known.node[:, 0]]
    prompt, slot = (known.node >= 0).nonzero(as_tuple=True)
    votes = torch.zeros(graph.num_nodes, KINDS)
    votes.index_put_((known.node[prompt, slot], y[prompt]), torch.ones(len(prompt)), accumulate=True)
    votes = (votes + 1).log() - (votes.sum(0) + KINDS).log()
    votes = votes - votes.mean(1, keepdim=True)
    return torch.where((trees.node >= 0).unsqueeze(-1), votes[trees.node.clamp(min=0)], 0.0).sum(1).argmax(1)


def kinds_by_depth(graph: TextGraph, trees: EgoTrees) -> Tensor:
    """Counts of kinds at depth 1 and 2, ``[B, 2, KINDS]``: all that one knows who sees nodes and depths only."""
    kind = _kinds(graph, trees)
    found = [torch.where(trees.depth == depth, kind, KINDS) for depth in (1, 2)]
    return torch.stack([one_hot(here, KINDS + 1)[..., :KINDS].sum(1) for here in found], 1)


def _kinds(graph: TextGraph, trees: EgoTrees) -> Tensor:
    """The kind of each vertex as its features say it, ``KINDS`` for centres and where there is none."""
    hot = graph.x.argmax(1)
    kind = torch.where(hot < 2 * KINDS, hot % KINDS, KINDS)
    return torch.where(trees.node >= 0, kind[trees.node.clamp(min=0)], KINDS)
