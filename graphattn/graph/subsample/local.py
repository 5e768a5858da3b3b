"""Local windows whose sources are jittered: along a sequence, over a grid, or by coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.lists import ListGraph
from graphattn.graph.subsample.chance import Device, Generator, count_kept, draw
from graphattn_kernels.lists import SourceLists
from graphattn_kernels.select_sources import order_sources

__all__ = ["jittered_windows"]

Splits = Callable[[int], tuple[int, ...]]


def jittered_windows(
    positions: int | tuple[int, int] | Tensor,
    keep: float,
    sigma: float,
    generator: Generator = None,
    *,
    batch: int | None = None,
    minimum: int = 1,
    device: Device = None,
) -> ListGraph:
    """Local windows whose sources are shuffled over a distance (locally biased SSA).

    Targets stand in the order of their positions, in blocks of w = :func:`count_kept`; sources in the order of
    positions with noise, :math:`u_j = x_j + \\sigma \\epsilon_j`, cut into windows of w; block b reads window b. With
    sigma 0 these are plain windows, with sigma towards infinity uniform subsets that partition the tokens. Every
    target reads exactly w sources. Of k coordinates, tokens are cut along one after another, into blocks of equal
    numbers. Where w does not divide N, the last window reaches back into the one before.

    Args:
        positions: N (a sequence), ``(height, width)`` (a grid, row by row), or floating ``[N]`` or ``[N, k]`` (a
            graph's Laplacian coordinates or breadth-first order; one coordinate counts by rank, so that sigma is in
            tokens; with a batch ``[B, N, k]``, too).
        keep: Share of the sources that each target reads.
        sigma: Standard deviation of the noise, in tokens (sequence, one coordinate), cells (grid), or units of the
            positions.
        generator: See :func:`uniform_sources`.
        batch: So many batch entries with windows of their own; ``None``: one graph for all.
        minimum: Least size of a window.
        device: See :func:`uniform_sources`; default for a tensor: its device.

    Returns:
        A list graph.

    Raises:
        ArgumentError: If sizes do not fit or ``sigma`` is negative.
    """
    if not sigma >= 0:
        raise ArgumentError(f"sigma must not be negative, got {sigma}")
    x, splits_of = _coordinates(positions, device)
    tokens, axes = x.shape[-2], x.shape[-1]
    copies = 1 if batch is None else batch
    if x.shape[0] not in (1, copies):
        raise ArgumentError(f"positions must be for 1 or {copies} batch entries, got {list(x.shape)}")
    window = count_kept(tokens, keep, minimum)
    blocks = -(-tokens // max(window, 1))
    splits = splits_of(blocks)
    noise = draw(torch.randn, (copies, tokens, axes), generator, x.device)
    source = _in_cells(torch.add(x, noise, alpha=sigma) if math.isfinite(sigma) else noise, splits)
    order = None
    if not isinstance(positions, int):
        order = torch.nn.functional.pad(_in_cells(x, splits).int(), (0, blocks * window - tokens), value=-1)
    even = blocks * window == tokens
    if even:
        index = source.reshape(copies, blocks, window)
    else:  # every target reads exactly `window` sources: the last window begins earlier
        begin = torch.arange(blocks, device=x.device).mul_(window).clamp_(max=tokens - window)
        index = source[:, begin[:, None] + torch.arange(window, device=x.device)]
    named = "" if batch is None else "b"
    lists = SourceLists(index, None, order, tokens, tokens, max(window, 1), named, False, False, even)
    return ListGraph(lists, () if batch is None else (batch,))


def _coordinates(positions: int | tuple[int, int] | Tensor, device: Device) -> tuple[Tensor, Splits]:
    """``[1 or B, N, k]`` floating, and a function from a number of blocks to the cuts along each coordinate."""
    if isinstance(positions, int):
        return torch.arange(positions, device=device, dtype=torch.float32).view(1, -1, 1), lambda blocks: (blocks,)
    if isinstance(positions, tuple):
        height, width = positions
        row = torch.arange(height, device=device, dtype=torch.float32)
        column = torch.arange(width, device=device, dtype=torch.float32)
        cells = torch.stack(torch.meshgrid(row, column, indexing="ij"), -1)
        return cells.view(1, -1, 2), lambda blocks: _grid_splits(height, width, blocks)
    if not isinstance(positions, Tensor) or not positions.is_floating_point() or positions.dim() not in (1, 2, 3):
        form = isinstance(positions, Tensor)
        got = f"{positions.dtype} {list(positions.shape)}" if form else type(positions).__name__
        raise ArgumentTypeError(f"positions must be an int, (height, width) or a floating tensor [N, k], got {got}")
    x = positions if device is None else positions.to(device)
    x = x.view(1, -1, 1) if x.dim() == 1 else x.unsqueeze(0) if x.dim() == 2 else x
    axes = x.shape[-1]
    if axes == 1:
        order = x.argsort(dim=1, stable=True)
        rank = torch.arange(x.shape[1], device=x.device, dtype=torch.float32).view(1, -1, 1).expand_as(order)
        return torch.empty_like(rank).scatter_(1, order, rank), lambda blocks: (blocks,)
    return x.float(), lambda blocks: _even_splits(blocks, axes)


def _grid_splits(height: int, width: int, blocks: int) -> tuple[int, int]:
    """The cut of a grid into so many blocks whose cells are closest to squares."""
    pairs = [(rows, blocks // rows) for rows in range(1, blocks + 1) if blocks % rows == 0]
    return min(pairs, key=lambda cut: abs(math.log((height / cut[0]) / (width / cut[1]))))


def _even_splits(blocks: int, axes: int) -> tuple[int, ...]:
    """Cuts along each coordinate, as equal as the divisors of the number of blocks allow; larger ones first."""
    splits = [1] * axes
    rest, prime = blocks, 2
    factors = []
    while rest > 1:
        while rest % prime == 0:
            factors.append(prime)
            rest //= prime
        prime += 1
    for factor in reversed(factors):
        splits[splits.index(min(splits))] *= factor
    return tuple(splits)


def _in_cells(x: Tensor, splits: tuple[int, ...]) -> Tensor:
    """int64 ``[B, N]``: tokens sorted by cell, cells being cut along one coordinate after another into parts of equal
    numbers of tokens."""
    batch, tokens, _ = x.shape
    place = torch.arange(tokens, device=x.device).expand(batch, -1)
    order = group = None
    parts = 1
    for axis, cuts in enumerate(splits):
        by_value = order_sources(x[..., axis])
        if group is not None:
            by_value = by_value.gather(1, group.gather(1, by_value).argsort(dim=1, stable=True))
        order = by_value
        parts *= cuts
        if axis + 1 < len(splits):
            cell = (place * parts).div(max(tokens, 1), rounding_mode="floor")
            group = torch.empty_like(place.contiguous()).scatter_(1, order, cell)
    assert order is not None
    return order
