"""What all draws share: how many tokens stay, and where random numbers come from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from graphattn.errors import ArgumentError

__all__ = ["Device", "Generator", "count_kept", "counts_kept", "draw"]

Generator = torch.Generator | None
Device = torch.device | str | None

_SLACK = 1e-9  # 0.07 * 100 is 7.000000000000001 in floating point, and means 7


def count_kept(num_tokens: int, keep: float, minimum: int = 1) -> int:
    """m = max(minimum, ceil(keep N)), but N at most: how every share of tokens or edges is rounded.

    Raises:
        ArgumentError: If ``keep`` is no share in 0..1.
    """
    if not 0.0 <= keep <= 1.0:
        raise ArgumentError(f"keep must be a share in 0..1, got {keep}")
    return min(num_tokens, max(minimum, math.ceil(keep * num_tokens - _SLACK)))


def counts_kept(sizes: Tensor, keep: float, minimum: int = 1) -> Tensor:
    """:func:`count_kept` of each of many sizes, int64."""
    found = torch.ceil(sizes.double() * keep - _SLACK).long()
    return torch.minimum(found.clamp(min=minimum), sizes.long())


def draw(kind: Callable[..., Tensor], shape: tuple[int, ...], generator: Generator, device: Device) -> Tensor:
    """Random numbers, drawn where the generator is and brought where they are wanted."""
    where = device if generator is None else generator.device
    drawn = kind(shape, generator=generator, device=where)
    return drawn if device is None else drawn.to(device, non_blocking=True)
