"""Small random graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

__all__ = ["GRAPH_KINDS", "random_graph"]

GRAPH_KINDS = (
    "sparse",
    "dense",
    "hub",
    "empty_rows",
    "duplicates",
    "self_loops",
    "one_token",
    "no_edges",
    "batch",
)
"""What :func:`random_graph` can make: together, the shapes of graph that break attention kernels."""


def random_graph(
    seed: int = 0,
    kind: str = "sparse",
    *,
    bipartite: bool = False,
    device: torch.device | str | None = None,
) -> TokenGraph:
    """A small random graph whose edges are in random order.

    Args:
        seed: The same seed makes the same graph.
        kind: One of :data:`GRAPH_KINDS`. ``"hub"`` has a target that reads every source and a source that every
            target reads; in ``"empty_rows"`` no more than every second target reads, the last never; in
            ``"duplicates"`` edges come once to three times; ``"batch"`` is a ragged batch, one of whose members has a
            single token and one no edge.
        bipartite: Make the number of sources differ from the number of targets.
        device: Where the graph lives; default: the CPU.

    Raises:
        ArgumentError: If there is no such kind.
    """
    if kind not in GRAPH_KINDS:
        raise ArgumentError(f"kind must be one of {GRAPH_KINDS}, got {kind!r}")
    random = torch.Generator().manual_seed(seed)
    target_ptr: Tensor | None = None
    source_ptr: Tensor | None = None
    if kind == "batch":
        target_sizes = [5, 1, 4, 3]
        source_sizes = [size + 2 * bipartite for size in target_sizes]
        blocks = [torch.rand(t, s, generator=random) < 0.5 for t, s in zip(target_sizes, source_sizes, strict=True)]
        blocks[2].zero_()
        mask = torch.block_diag(*(block.float() for block in blocks)) > 0
        target_ptr, source_ptr = (
            torch.tensor([0, *sizes]).cumsum(0).to(device) for sizes in (target_sizes, source_sizes)
        )
    else:
        targets = 1 if kind == "one_token" else int(torch.randint(6, 11, (), generator=random))
        density = {"dense": 0.9, "no_edges": 0.0, "one_token": 1.0}.get(kind, 0.3)
        mask = torch.rand(targets, targets + 3 * bipartite, generator=random) < density
    if kind == "hub":
        mask[2, :], mask[:, 1] = True, True
    if kind == "empty_rows":
        mask[1::2], mask[-1] = False, False
        mask[2, 0] = True
    if kind == "self_loops":
        mask.fill_diagonal_(True)
    target, source = mask.nonzero(as_tuple=True)
    if kind == "duplicates":
        times = torch.randint(1, 4, source.shape, generator=random)
        target, source = target.repeat_interleave(times), source.repeat_interleave(times)
    order = torch.randperm(source.shape[0], generator=random)
    return TokenGraph.from_edge_index(
        torch.stack([source[order], target[order]]).to(device),
        num_targets=mask.shape[0],
        num_sources=mask.shape[1],
        target_ptr=target_ptr,
        source_ptr=source_ptr,
    )
