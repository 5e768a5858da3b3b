"""Neighbours of a pixel, in the one order that connectivity cubes have, and tensors shifted by slicing.

Channel c of a cube ``[..., K, H, W]`` speaks, at pixel p, of the neighbour ``p + offset[c]``; the opposite of c is
``K - 1 - c``. The neighbours ascend in the numbering of the pixels, as the sources of a target of a grid pattern do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

__all__ = ["OFFSETS", "check_cube", "reciprocal", "shifted"]

OFFSETS: dict[int, tuple[tuple[int, int], ...]] = {
    4: ((-1, 0), (0, -1), (0, 1), (1, 0)),
    8: ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)),
}
"""(down, right) of each channel, by the number of neighbours."""


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """``y[..., i, j] = x[..., i + down, j + right]``, 0 (``False``) outside; steps of at most 1.

    A view of the padded tensor: nothing wraps around, whatever the size.
    """
    height, width = x.shape[-2:]
    framed = pad(x, (1, 1, 1, 1))
    return framed[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def reciprocal(cube: Tensor) -> Tensor:
    """What the neighbour of each channel says of this pixel: ``R_c(p) = P_{K-1-c}(p + o_c)``, 0 outside."""
    height, width = cube.shape[-2:]
    offsets = OFFSETS[cube.shape[-3]]
    framed = pad(cube, (1, 1, 1, 1)).flip(-3)
    parts = [
        framed[..., c, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        for c, (down, right) in enumerate(offsets)
    ]
    return torch.stack(parts, -3)


def check_cube(name: str, cube: Any, *, floating: bool = True) -> None:
    """Raise unless ``cube`` is ``[..., K, H, W]`` with K = 4 or 8, of a floating dtype (else bool)."""
    if not isinstance(cube, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor, got {type(cube).__name__}")
    if floating and not cube.is_floating_point():
        raise ArgumentTypeError(f"{name} must be a floating tensor, got {cube.dtype}")
    if not floating and cube.dtype != torch.bool:
        raise ArgumentTypeError(f"{name} must be a bool tensor, got {cube.dtype}")
    if cube.dim() < 3 or cube.shape[-3] not in OFFSETS:
        raise ArgumentError(
            f"{name} must be [..., K, H, W] with K = 4 or 8 channels, one for each neighbour, got {list(cube.shape)}"
        )
