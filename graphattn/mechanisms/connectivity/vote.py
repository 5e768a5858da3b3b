"""From cubes to masks and instances: votes, agreement, components, propagation of labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.attention import propagate
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.grid_rule import Grid
from graphattn.mechanisms.connectivity.cube import edges_to_cube
from graphattn_kernels import agreed_edges, bilateral_vote, connected_components
from graphattn_kernels._grid import check_cube, reciprocal

__all__ = [
    "Instances",
    "agreed_edges",
    "agreed_mask",
    "bilateral_vote",
    "components",
    "connected_components",
    "instances",
    "label_propagation",
    "mutual_agreement",
    "pair_votes",
]


def pair_votes(cube: Tensor, *, logits: bool = True) -> Tensor:
    """Bilateral votes: :math:`V_c(p) = P_c(p)\\, P_{K-1-c}(p + o_c)`, 0 where the neighbour is outside the image.

    :func:`~graphattn_kernels.bilateral_vote` gives their maximum or mean without making them.

    Args:
        cube: ``[..., K, H, W]``.
        logits: Whether it holds logits, whose sigmoid is P.

    Returns:
        ``[..., K, H, W]``; symmetric: :math:`V_c(p) = V_{K-1-c}(p + o_c)`.

    Raises:
        ArgumentError: If the shape does not fit.
    """
    check_cube("cube", cube)
    p = cube.sigmoid() if logits else cube
    return p * reciprocal(p)


def mutual_agreement(cube: Tensor, threshold: float = 0.5, *, logits: bool = True) -> Tensor:
    """Which edges are on: both ends give them more than the threshold (ConnNet's rule; its threshold is unverified).

    Args:
        cube: ``[..., K, H, W]``.
        threshold: A probability.
        logits: Whether ``cube`` holds logits.

    Returns:
        bool ``[..., K, H, W]``. :func:`~graphattn_kernels.agreed_edges` has the same in one byte a pixel.

    Raises:
        ArgumentError: If the shape or the threshold does not fit.
    """
    bits = agreed_edges(cube, threshold=threshold, logits=logits)
    channel = torch.arange(cube.shape[-3], device=bits.device, dtype=torch.uint8)
    return (bits.unsqueeze(-3) >> channel[:, None, None]) & 1 == 1


def agreed_mask(cube: Tensor, threshold: float = 0.5, *, logits: bool = True, backend: str = "auto") -> Tensor:
    """The hard mask: pixels with an edge that is on, bool ``[..., H, W]`` of a cube ``[..., K, H, W]``."""
    return agreed_edges(cube, threshold=threshold, logits=logits, backend=backend) != 0


class Instances(NamedTuple):
    """Components of a batch of images."""

    labels: Tensor
    """int32 ``[..., H, W]``: 1, 2, ... in the order of their first pixel; 0: background."""
    counts: Tensor
    """int32 ``[...]``: how many there are in each image."""


def instances(
    cube: Tensor, threshold: float = 0.5, *, logits: bool = True, min_pixels: int = 1, backend: str = "auto"
) -> Instances:
    """Instances of a cube: connected components of the edges that are on (ours; in the paper a detector finds them).

    Nothing waits for the device. Instances that touch come apart only where the cube was learned from instances
    (:func:`~graphattn.mechanisms.connectivity.instance_labels`).

    Args:
        cube: ``[..., K, H, W]``.
        threshold: See :func:`mutual_agreement`.
        logits: Whether ``cube`` holds logits.
        min_pixels: Smaller components are background.
        backend: ``"auto"``, ``"triton"``, ``"numba"`` or ``"gather"``.

    Raises:
        ArgumentError: If the shape, the threshold or ``min_pixels`` does not fit.
    """
    if min_pixels < 1:
        raise ArgumentError(f"min_pixels must be positive, got {min_pixels}")
    bits = agreed_edges(cube, threshold=threshold, logits=logits, backend="gather" if backend == "numba" else backend)
    found = Instances(*connected_components(bits, neighbours=cube.shape[-3], backend=backend))
    return found if min_pixels <= 2 else _without_small(found, min_pixels)  # a component has two pixels at least


def components(graph: TokenGraph, agreed: Tensor) -> tuple[Tensor, Tensor]:
    """Connected components of the agreed edges of any square graph.

    Grids take the kernels; other graphs go through SciPy on the host.

    Args:
        graph: The token graph.
        agreed: bool ``[..., E]`` in the graph's edge order; on a grid it must be mutual. Leading dimensions share the
            graph.

    Returns:
        Labels int32 ``[..., N]``, 1, 2, ... in the order of their first token, 0 for tokens without an agreed edge; and
        their number, int32 ``[...]``.

    Raises:
        ArgumentError: If the graph is not square or the number of edges differs.
    """
    tokens = graph.num_tokens
    if agreed.dtype != torch.bool or agreed.dim() < 1 or agreed.shape[-1] != graph.num_edges:
        raise ArgumentError(
            f"agreed must be bool [..., {graph.num_edges}] for the edges of the graph, "
            f"got {agreed.dtype} {list(agreed.shape)}"
        )
    pattern = graph.pattern
    if isinstance(pattern, Grid) and pattern.radius == 1 and not (pattern.torus or pattern.self_loops):
        cube = edges_to_cube(graph, agreed.to(torch.uint8), fill=0)
        channel = torch.arange(cube.shape[-3], device=cube.device, dtype=torch.uint8)
        bits = (cube << channel[:, None, None]).sum(-3, dtype=torch.uint8)
        labels, counts = connected_components(bits, neighbours=cube.shape[-3])
        return labels.flatten(-2), counts
    flat = agreed.reshape(-1, graph.num_edges).cpu()
    found = [_scipy_components(graph.edge_index.cpu()[:, on], tokens) for on in flat]
    labels = torch.stack([label for label, _ in found]) if found else torch.zeros(0, tokens, dtype=torch.int32)
    counts = torch.tensor([count for _, count in found], dtype=torch.int32)
    leading = agreed.shape[:-1]
    return labels.reshape(*leading, tokens).to(agreed.device), counts.reshape(leading).to(agreed.device)


def label_propagation(
    graph: TokenGraph, weights: Tensor, x: Tensor, steps: int = 1, *, backend: str = "auto"
) -> Tensor:
    """Every token mixes its row with those of the tokens it is connected to, again and again.

    .. math:: x_t \\leftarrow \\frac{x_t + \\sum_s w_{st} x_s}{1 + \\sum_s w_{st}}

    With mutual weights, rows become constant on connected components, and never cross between them.

    Args:
        graph: Square.
        weights: ``[E, H]`` or ``[..., E, H]``, not negative.
        x: ``[..., N, H, D]``.
        steps: How often.
        backend: See :func:`graphattn.attend`.

    Returns:
        ``[..., N, H, D]``.

    Raises:
        ArgumentError: If shapes do not fit.
    """
    if steps < 0:
        raise ArgumentError(f"steps must not be negative, got {steps}")
    total = 1 + propagate(graph, weights, torch.ones_like(x[..., :1]), backend=backend)
    for _ in range(steps):
        x = (x + propagate(graph, weights, x, backend=backend)) / total
    return x


def _without_small(found: Instances, min_pixels: int) -> Instances:
    """Small components are background, and the others move up; sizes of arrays never depend on what is found."""
    labels = found.labels
    flat = labels.flatten(-2).flatten(0, -2) if labels.dim() > 2 else labels.flatten().unsqueeze(0)
    size = flat.new_zeros(flat.shape[0], flat.shape[1] + 1)
    size = size.scatter_add(1, flat.long(), torch.ones_like(flat))
    stays = size >= min_pixels
    stays[:, 0] = False
    moved = stays.cumsum(1, dtype=torch.int32)
    kept = moved.masked_fill(~stays, 0).gather(1, flat.long())
    return Instances(kept.reshape(labels.shape), moved[:, -1].reshape(found.counts.shape))


def _scipy_components(edges: Tensor, tokens: int) -> tuple[Tensor, int]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as of_matrix

    source, target = edges.numpy()
    matrix = coo_array((torch.ones(edges.shape[1]).numpy(), (target, source)), shape=(tokens, tokens))
    _, found = of_matrix(matrix, directed=False)
    member = torch.from_numpy(found).long()
    on = torch.zeros(tokens, dtype=torch.bool)
    on[edges.flatten()] = True
    first = torch.full((int(member.max()) + 1 if tokens else 0,), tokens)
    first = first.scatter_reduce(0, member[on], torch.arange(tokens)[on], "amin")
    rank = first.argsort().argsort() + 1
    return rank[member].masked_fill(~on, 0).to(torch.int32), int((first < tokens).sum())
