"""Trees of a prompt: depths, distances, and whether a model relies on who is linked to whom.

Trees are given by ``parent [..., V]``, the vertex that each vertex hangs from (-1: a root, or no vertex), as
:func:`graphattn.graph.graph_window` takes them, or are whole :class:`~graphattn_datasets.text_graphs.EgoTrees`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph.reach import tree_adjacency, within_hops
from graphattn_datasets.text_graphs import EgoTrees

__all__ = [
    "PERTURBATIONS",
    "linkage_reliance",
    "perturb",
    "token_distance",
    "tree_depth",
    "tree_distance",
]

PERTURBATIONS = ("I", "II", "III", "IV")
_ROUNDS = 11


def tree_depth(parent: Tensor) -> Tensor:
    """Edges from each vertex up to its root: int64 ``[..., V]`` (0, too, where there is no vertex)."""
    depth, at = torch.zeros_like(parent), parent
    for _ in range(parent.shape[-1]):
        above = at >= 0
        if not bool(above.any()):
            return depth
        depth = depth + above
        at = torch.where(above, parent.gather(-1, at.clamp(min=0)), -1)
    raise ArgumentError("parent must describe trees, got a cycle")


def tree_distance(parent: Tensor, largest: int) -> Tensor:
    """Edges between each two vertices: int64 ``[..., V, V]``, ``largest + 1`` where there are more, or no way."""
    adjacency = tree_adjacency(parent)
    distance = torch.zeros(adjacency.shape, dtype=torch.int64, device=parent.device)
    for hops in range(largest + 1):
        distance += ~within_hops(adjacency, hops)
    return distance


def token_distance(distance: Tensor, node_of_token: Tensor) -> Tensor:
    """Distances of vertices, ``[B, V, V]``, for each two tokens of a prompt: ``[B, T, T]``, -1 where one is text.

    Args:
        distance: See :func:`tree_distance`.
        node_of_token: int64 ``[B, T]`` the vertex that a token stands for, -1 for text.
    """
    at = node_of_token.clamp(min=0)
    batch = torch.arange(at.shape[0], device=at.device)[:, None, None]
    found = distance[batch, at.unsqueeze(-1), at.unsqueeze(-2)]
    here = node_of_token >= 0
    return torch.where(here.unsqueeze(-1) & here.unsqueeze(-2), found, -1)


def perturb(trees: EgoTrees, level: str, generator: torch.Generator) -> EgoTrees:
    """Trees with other links, which a model that reads links must mind (Guan et al., arXiv 2505.02130, question 1;
    after a description of their code).

    * ``"I"``: two neighbours of the centre exchange their children.
    * ``"II"``: eleven times, a child of one neighbour changes places with a child of another.
    * ``"III"``: all nodes but the centre are shuffled over their places.
    * ``"IV"``: each node but the centre is, with probability one half, replaced by one of another tree of the batch
      (how their eleven rounds make "about half" is not known).

    Args:
        trees: Of depth 2, in pre-order, on the CPU; the root is vertex 0.
        level: One of :data:`PERTURBATIONS`.
        generator: Source of chance.

    Returns:
        Trees of the same sizes, in pre-order; a tree that has no such two neighbours stays as it is.

    Raises:
        ArgumentError: If the level is unknown, or there is no other tree for ``"IV"``.
    """
    if level not in PERTURBATIONS:
        raise ArgumentError(f"level must be one of {PERTURBATIONS}, got {level!r}")
    depth, movable = trees.depth, trees.depth > 0
    if level == "III":
        return trees._replace(node=_shuffled(trees.node, movable, generator))
    if level == "IV":
        return trees._replace(node=_replaced(trees.node, movable, generator))
    node, parent = trees.node.clone(), trees.parent.clone()
    for row in range(len(node)):
        lists: dict[int, list[int]] = {}
        for child in (depth[row] == 2).nonzero().flatten().tolist():
            lists.setdefault(int(parent[row, child]), []).append(child)
        if level == "I":
            neighbours = (depth[row] == 1).nonzero().flatten().tolist()
            if len(neighbours) >= 2 and lists:
                first, second = _two(neighbours, generator)
                changed = {first: second, second: first}
                node[row], parent[row] = _hang(node[row], parent[row], changed)
        elif len(lists) >= 2:
            for _ in range(_ROUNDS):
                one, other = (lists[key] for key in _two(list(lists), generator))
                a, b = one[_below(len(one), generator)], other[_below(len(other), generator)]
                node[row, [a, b]] = node[row, [b, a]]
    return EgoTrees(node, parent, torch.where(node >= 0, tree_depth(parent), -1))


def linkage_reliance(
    accuracy: Callable[[EgoTrees], float], trees: EgoTrees, generator: torch.Generator
) -> dict[str, float]:
    """What a model loses when links are wrong: its accuracy on the trees less that on perturbed ones, for each of
    :data:`PERTURBATIONS`; near 0 where a model only looks at which nodes there are.

    Args:
        accuracy: Of the model on the prompts of such trees.
        trees: See :func:`perturb`.
        generator: Source of chance.
    """
    whole = accuracy(trees)
    return {level: whole - accuracy(perturb(trees, level, generator)) for level in PERTURBATIONS}


def _shuffled(node: Tensor, movable: Tensor, generator: torch.Generator) -> Tensor:
    """Node numbers of the movable vertices in a random order, row by row."""
    chance = torch.rand(node.shape, generator=generator)
    place = torch.where(movable, chance, 2.0).argsort(1)  # the movable vertices, shuffled, come first
    slot = (~movable).byte().argsort(dim=1, stable=True)  # the movable vertices in order come first
    here = movable.gather(1, slot)
    new = torch.where(here, node.gather(1, place), node.gather(1, slot))
    return torch.empty_like(node).scatter_(1, slot, new)


def _replaced(node: Tensor, movable: Tensor, generator: torch.Generator) -> Tensor:
    if len(node) < 2:
        raise ArgumentError("perturbation IV needs at least two trees, got one")
    pool = movable.nonzero()
    size = movable.sum(1)
    before = size.cumsum(0) - size
    # A number among the nodes of all other trees: those after a tree are counted on past its own.
    others = (len(pool) - size).unsqueeze(1)
    drawn = (torch.rand(node.shape, generator=generator) * others).long().clamp(max=others - 1)
    drawn = torch.where(drawn >= before.unsqueeze(1), drawn + size.unsqueeze(1), drawn)
    foreign = node[pool[:, 0], pool[:, 1]][drawn.clamp(0, len(pool) - 1)]
    change = movable & (torch.rand(node.shape, generator=generator) < 0.5) & (others > 0)
    return torch.where(change, foreign, node)


def _hang(node: Tensor, parent: Tensor, changed: dict[int, int]) -> tuple[Tensor, Tensor]:
    """The tree with children hung from other parents, in pre-order again."""
    numbers, above = node.tolist(), parent.tolist()
    children: dict[int, list[int]] = {}
    for vertex, old in enumerate(above):
        if old >= 0:
            children.setdefault(changed.get(old, old), []).append(vertex)
    order: list[tuple[int, int]] = []  # vertex, and the new number of its parent
    todo = [(vertex, -1) for vertex, old in enumerate(above) if old < 0 and numbers[vertex] >= 0][::-1]
    while todo:
        vertex, up = todo.pop()
        order.append((vertex, up))
        todo += [(child, len(order) - 1) for child in reversed(children.get(vertex, []))]
    new_node, new_parent = torch.full_like(node, -1), torch.full_like(parent, -1)
    new_node[: len(order)] = torch.tensor([numbers[vertex] for vertex, _ in order])
    new_parent[: len(order)] = torch.tensor([up for _, up in order])
    return new_node, new_parent


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _two(items: list[int], generator: torch.Generator) -> list[int]:
    """Two different ones."""
    return [items[i] for i in torch.randperm(len(items), generator=generator)[:2].tolist()]
