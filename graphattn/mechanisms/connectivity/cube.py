"""Connectivity cubes: what each pixel says of its neighbours, as labels and as edges of a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.grid_rule import Grid
from graphattn_kernels._grid import OFFSETS, check_cube, shifted

__all__ = ["class_labels", "connectivity_labels", "cube_to_edges", "edges_to_cube", "instance_labels", "neighbours_of"]


def neighbours_of(channels: int) -> tuple[tuple[int, int], ...]:
    """Offsets (down, right) of the neighbour that each channel speaks of; the opposite of c is ``channels - 1 - c``.

    Args:
        channels: 8 or 4.

    Raises:
        ArgumentError: If it is neither.
    """
    if channels not in OFFSETS:
        raise ArgumentError(f"neighbours must be 4 or 8, got {channels!r}")
    return OFFSETS[channels]


def connectivity_labels(mask: Tensor, neighbours: int = 8, *, validate: bool = True) -> Tensor:
    """The ground-truth cube of a binary mask: :math:`Y_c(p) = m(p)\\, m(p + o_c)`, false outside the image.

    Background pairs are not connected, though they agree (Kampffmeyer et al., "ConnNet", arXiv 1804.07836; formalism
    read in the code of BiconNet). A foreground pixel without a foreground neighbour cannot be represented.

    Args:
        mask: ``[..., H, W]`` of 0 and 1, of any dtype.
        neighbours: 8 or 4.
        validate: Look at the values (waits for the device); without it, whatever is not 0 counts as 1.

    Returns:
        bool ``[..., K, H, W]``.

    Raises:
        ArgumentError: If shape or values do not fit.
        ArgumentTypeError: If it is no tensor.
    """
    foreground = _binary("mask", mask, validate)
    return torch.stack([foreground & shifted(foreground, *step) for step in neighbours_of(neighbours)], -3)


def class_labels(classes: Tensor, num_classes: int, neighbours: int = 8, *, validate: bool = True) -> Tensor:
    """A cube for each class: that of the class' own mask (DconnNet, CVPR 2023).

    Args:
        classes: Integer ``[..., H, W]``, 0 to C - 1; class 0 has a cube as any other. Values outside (255, say) are of
            no class.
        num_classes: C.
        neighbours: 8 or 4.
        validate: Look at the values (waits for the device): some class must be there.

    Returns:
        bool ``[..., C, K, H, W]``; DconnNet's layout, C K channels class by class, is ``flatten(-4, -3)`` of it.

    Raises:
        ArgumentError: If shape or values do not fit.
        ArgumentTypeError: If the dtype does not fit.
    """
    _integer("classes", classes)
    if num_classes < 1:
        raise ArgumentError(f"num_classes must be positive, got {num_classes}")
    every = torch.arange(num_classes, device=classes.device, dtype=torch.int64)
    masks = classes.unsqueeze(-3) == every[:, None, None]
    if validate and classes.numel() and not bool(masks.any()):
        raise ArgumentError(f"classes must lie in 0..{num_classes - 1}, got none that does")
    return connectivity_labels(masks, neighbours, validate=False)


def instance_labels(ids: Tensor, neighbours: int = 8) -> Tensor:
    """The cube of instances: :math:`Y_c(p) = [\\mathrm{id}(p) = \\mathrm{id}(p + o_c) \\neq 0]`.

    Instances that touch stay apart in it, which the cube of their common mask does not give.

    Args:
        ids: Integer ``[..., H, W]``; 0 is background.
        neighbours: 8 or 4.

    Returns:
        bool ``[..., K, H, W]``.

    Raises:
        ArgumentError: If the shape does not fit.
        ArgumentTypeError: If the dtype does not fit.
    """
    _integer("ids", ids)
    foreground = ids != 0
    return torch.stack([foreground & (ids == shifted(ids, *step)) for step in neighbours_of(neighbours)], -3)


def cube_to_edges(graph: TokenGraph, cube: Tensor) -> Tensor:
    """The numbers of a cube on the edges of its grid: token p asks, and the edge from ``p + o_c`` has channel c of p.

    Numbers about neighbours outside the image are left behind. ``cube_to_edges(graph, cube).unsqueeze(-1)`` is a ready
    score for :func:`graphattn.attend`, whose normaliser ``"mutual"`` gives the bilateral votes.

    Args:
        graph: ``patterns.grid(H, W, neighbours=8)``, or 4.
        cube: ``[..., K, H, W]``.

    Returns:
        ``[..., E]``, target-major with ascending sources, the order of the pattern.

    Raises:
        ArgumentError: If the graph is no such grid, or the cube is not of its size.
    """
    neighbours = _neighbours(graph)
    _check_size("cube", cube, graph, neighbours)
    return cube.flatten(-3).index_select(-1, _place(graph, neighbours))


def edges_to_cube(graph: TokenGraph, edges: Tensor, fill: float = 0.0) -> Tensor:
    """The inverse of :func:`cube_to_edges`.

    Args:
        graph: ``patterns.grid(H, W, neighbours=8)``, or 4.
        edges: ``[..., E]``.
        fill: What stands where the neighbour is outside the image.

    Returns:
        ``[..., K, H, W]``.

    Raises:
        ArgumentError: If the graph is no such grid, or the number of edges differs.
    """
    neighbours = _neighbours(graph)
    if not isinstance(edges, Tensor) or edges.dim() < 1 or edges.shape[-1] != graph.num_edges:
        got = list(edges.shape) if isinstance(edges, Tensor) else type(edges).__name__
        raise ArgumentError(f"edges must be [..., {graph.num_edges}] for the edges of the grid, got {got}")
    pattern = _grid(graph)
    size = neighbours, pattern.height, pattern.width
    place = _place(graph, neighbours)
    cube = edges.new_full((*edges.shape[:-1], neighbours * graph.num_tokens), fill)
    return cube.index_copy(-1, place, edges).unflatten(-1, size)


def _place(graph: TokenGraph, neighbours: int) -> Tensor:
    """Where in the cube ``[K, H, W]`` the number of each edge stands, int64 ``[E]``."""
    width = max(1, _grid(graph).width)
    source, target = graph.edge_index
    down = source.div(width, rounding_mode="floor") - target.div(width, rounding_mode="floor")
    in_square = 3 * (down + 1) + (source % width - target % width + 1)
    channel = in_square - (in_square > 4).long() if neighbours == 8 else in_square // 2
    return channel * graph.num_tokens + target


def _grid(graph: TokenGraph) -> Grid:
    pattern = graph.pattern if isinstance(graph, TokenGraph) else None
    if not isinstance(pattern, Grid) or pattern.radius != 1 or pattern.torus or pattern.self_loops:
        raise ArgumentError(
            "graph must be patterns.grid(height, width, neighbours=8) or neighbours=4, without torus and self-loops, "
            f"got {graph!r}"
        )
    return pattern


def _neighbours(graph: TokenGraph) -> int:
    return 8 if _grid(graph).diagonal else 4


def _check_size(name: str, cube: object, graph: TokenGraph, neighbours: int) -> None:
    pattern = _grid(graph)
    size = [neighbours, pattern.height, pattern.width]
    if not isinstance(cube, Tensor) or cube.dim() < 3 or list(cube.shape[-3:]) != size:
        got = list(cube.shape) if isinstance(cube, Tensor) else type(cube).__name__
        raise ArgumentError(f"{name} must be [..., {size[0]}, {size[1]}, {size[2]}] for this grid, got {got}")


def _binary(name: str, mask: object, validate: bool) -> Tensor:
    if not isinstance(mask, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.dim() < 2:
        raise ArgumentError(f"{name} must be [..., H, W], got {list(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask
    if validate:
        odd = (mask != 0) & (mask != 1)
        if bool(odd.any()):
            raise ArgumentError(
                f"{name} must hold 0 and 1 only, got {mask[odd][0].item()!r} (a picture of 0 and 255: mask > 127)"
            )
    return mask != 0


def _integer(name: str, x: object) -> None:
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(f"{name} must be an integer tensor, got {got}")
    if x.dim() < 2:
        raise ArgumentError(f"{name} must be [..., H, W], got {list(x.shape)}")


def pair_logits(cube: Tensor) -> Tensor:
    """Logits of the bilateral votes: with a and b the logits of both ends, that of :math:`\\sigma(a) \\sigma(b)` is
    :math:`-\\log(e^{-a} + e^{-b} + e^{-a - b})`, exact where either probability rounds to 1.

    Args:
        cube: Logits ``[..., K, H, W]``.

    Returns:
        ``[..., K, H, W]``, -100 where the neighbour is outside the image.
    """
    check_cube("cube", cube)
    parts = []
    for c, (down, right) in enumerate(OFFSETS[cube.shape[-3]]):
        mine = cube[..., c, :, :]
        theirs = shifted(cube[..., cube.shape[-3] - 1 - c, :, :], down, right)
        inside = shifted(torch.ones_like(mine, dtype=torch.bool), down, right)
        sides = torch.logaddexp(-mine, -theirs)
        parts.append(torch.where(inside, -torch.logaddexp(sides, -mine - theirs), -100.0))
    return torch.stack(parts, -3)
