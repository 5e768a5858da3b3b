"""Sampled neighbourhoods as trees, many at once: what a prompt about a node serialises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError

__all__ = ["EgoTrees", "join_trees", "sample_trees", "trees_of_neighbors"]


class EgoTrees(NamedTuple):
    """One tree (or forest) for each of B prompts, its vertices in pre-order: a vertex, then its children's trees.

    A node of the graph that is sampled twice is two vertices. Trees are padded to one size V.
    """

    node: Tensor
    """int64 ``[B, V]``: the node that each vertex stands for, -1 past the last."""
    parent: Tensor
    """int64 ``[B, V]``: the vertex above, -1 for a root and past the last."""
    depth: Tensor
    """int64 ``[B, V]``: 0 for a root, -1 past the last."""

    @property
    def count(self) -> Tensor:  # type: ignore[override]  # the name is not needed as a tuple's
        """int64 ``[B]``: vertices of each tree."""
        return (self.node >= 0).sum(1)


def sample_trees(
    rowptr: Tensor,
    col: Tensor,
    centres: Tensor,
    fan_out: Sequence[int],
    generator: torch.Generator,
    *,
    without: Tensor | None = None,
) -> EgoTrees:
    """Sample a tree around each centre: up to ``fan_out[d]`` neighbours of each vertex of depth d, without replacement.

    As in the released prompts (arXiv 2505.02130, fan-out [8, 8]) the centre is nobody's grandchild; otherwise a node
    may be sampled again, through another neighbour. Costs memory in proportion to the neighbours looked at.

    Args:
        rowptr: int64 ``[N + 1]``, of an undirected graph without duplicate edges.
        col: int64 ``[E]``: the neighbours of node ``n`` are ``col[rowptr[n]:rowptr[n + 1]]``.
        centres: int64 ``[B]``.
        fan_out: Most children of a vertex, for each depth.
        generator: Source of randomness, on the device of the graph.
        without: int64 ``[B]``: a neighbour that each centre must not have (the other end of a link to predict).

    Returns:
        The trees, V the size of the largest.
    """
    batch = centres.shape[0]
    levels = [(torch.arange(batch, device=centres.device), centres, torch.zeros_like(centres))]  # prompt, node, path
    paths = [torch.zeros_like(centres)]
    base = max([*fan_out, 1]) + 1
    if base ** len(fan_out) * max(batch, 1) >= 2**62:
        raise ArgumentError(f"fan_out is too much for one number a path, got {list(fan_out)} for {batch} centres")
    for depth, most in enumerate(fan_out):
        prompt, node, path = levels[-1]
        degree = rowptr[node + 1] - rowptr[node]
        vertex = torch.repeat_interleave(degree)
        within = torch.arange(vertex.shape[0], device=node.device) - (degree.cumsum(0) - degree)[vertex]
        child = col[rowptr[node][vertex] + within]
        fits = child != centres[prompt[vertex]]
        if depth == 0 and without is not None:
            fits &= child != without[vertex]
        vertex, child = vertex[fits], child[fits]
        # In a random order, and then by vertex: the first of each vertex are a sample without replacement.
        shuffle = torch.rand(child.shape[0], generator=generator, device=node.device).argsort()
        order = shuffle[vertex[shuffle].argsort(stable=True)]
        vertex, child = vertex[order], child[order]
        rank = _rank_within(vertex)
        kept = rank < most
        vertex, child, rank = vertex[kept], child[kept], rank[kept]
        # A path is a number whose digits are the ranks on the way, so pre-order is ascending order.
        step = base ** (len(fan_out) - 1 - depth)
        levels.append((prompt[vertex], child, path[vertex] + (rank + 1) * step))
        paths.append(path[vertex])
    return _in_pre_order(batch, levels, paths)


def trees_of_neighbors(edge_index: Tensor, centres: Tensor, hops: int, node: Tensor | None = None) -> EgoTrees:
    """The trees of a sub-graph that PyG's ``NeighborLoader`` sampled (its edges lead to the node that sampled them).

    Args:
        edge_index: int64 ``[2, E]``: the sampled edges.
        centres: int64 ``[B]``: the seeds, in the numbers of ``edge_index`` (the first ``batch_size``).
        hops: Depth of the trees: the length of ``num_neighbors``.
        node: int64: the node of each number (``n_id``); default: numbers as they are.

    Returns:
        The trees: all sampled neighbours of each vertex but the centre. Where a seed was a neighbour of another seed
        its neighbours were sampled once, for both.
    """
    source, target = edge_index
    size = int(edge_index.max()) + 1 if edge_index.numel() else 0
    size = max(size, int(centres.max()) + 1)
    order = target.argsort(stable=True)
    count = torch.bincount(target, minlength=size)
    rowptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
    most = max(int(count.max()), 1)
    # Everything fits in the sample, so what is left to chance is the order of children; it is fixed here.
    generator = torch.Generator(centres.device).manual_seed(0)
    trees = sample_trees(rowptr, source[order], centres, [most] * hops, generator)
    if node is None:
        return trees
    return trees._replace(node=torch.where(trees.node < 0, -1, node[trees.node.clamp(min=0)]))


def join_trees(first: EgoTrees, second: EgoTrees) -> EgoTrees:
    """Forests of two trees each (the two ends of a link), the vertices of the second after those of the first."""
    parts = []
    sizes = first.count, second.count
    width = int((sizes[0] + sizes[1]).max())
    for a, b, fill in zip(first, second, (-1, -1, -1), strict=True):
        out = a.new_full((a.shape[0], width), fill)
        parts.append(out)
        for x, begin, size in ((a, torch.zeros_like(sizes[0]), sizes[0]), (b, *sizes)):
            at = torch.arange(x.shape[1], device=x.device)
            there = at < size.unsqueeze(1)
            prompt = torch.arange(x.shape[0], device=x.device).unsqueeze(1).expand_as(there)[there]
            shift = begin.unsqueeze(1) if x is second.parent else torch.zeros_like(begin.unsqueeze(1))
            value = torch.where(x < 0, x, x + shift)
            out[prompt, (at + begin.unsqueeze(1))[there]] = value[there]
    return EgoTrees(*parts)


def _rank_within(owner: Tensor) -> Tensor:
    """The how-maniest of its owner each row is, owners standing together."""
    at = torch.arange(owner.shape[0], device=owner.device)
    first = torch.ones_like(owner, dtype=torch.bool)
    first[1:] = owner[1:] != owner[:-1]
    return at - torch.where(first, at, 0).cummax(0).values if owner.numel() else at


def _in_pre_order(batch: int, levels: list[tuple[Tensor, Tensor, Tensor]], parent_paths: list[Tensor]) -> EgoTrees:
    prompt, node, path = (torch.cat(parts) for parts in zip(*levels, strict=True))
    depth = torch.repeat_interleave(torch.tensor([len(level[0]) for level in levels], device=node.device))
    parent_path = torch.cat(parent_paths)
    # By path, parents before their first child, and then by prompt.
    order = path.argsort(stable=True)
    order = order[prompt[order].argsort(stable=True)]
    prompt, node, path, depth, parent_path = (x[order] for x in (prompt, node, path, depth, parent_path))
    slot = _rank_within(prompt)
    width = int(slot.max()) + 1 if slot.numel() else 0
    key = path * batch + prompt
    known, at = key.sort()
    above = at[torch.searchsorted(known, parent_path * batch + prompt).clamp(max=max(len(known) - 1, 0))]
    parent = torch.where(depth > 0, slot[above], -1)
    out = [torch.full((batch, width), -1, dtype=torch.int64, device=node.device) for _ in range(3)]
    for table, value in zip(out, (node, parent, depth), strict=True):
        table[prompt, slot] = value
    return EgoTrees(*out)
