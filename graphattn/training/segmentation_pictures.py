"""Pictures of what a segmentation says, as arrays of pixels; no plotting package needed."""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from torch import Tensor

__all__ = ["colours", "connectivity_picture", "instance_picture"]

# Black, purple, orange, pale yellow: dark where nothing is connected, and readable in grey.
_RAMP = np.array([[0, 0, 4], [114, 31, 129], [241, 96, 93], [252, 253, 191]], dtype=np.float64)


def connectivity_picture(edges: Tensor, neighbours: int = 8) -> np.ndarray:
    """How many of its neighbours each pixel is connected to, from black (none) to pale (all): borders, thin places and
    cuts between touching objects show as darker lines.

    Args:
        edges: uint8 ``[H, W]``, a bit for each neighbour.
        neighbours: How many bits there are.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    bits = torch.stack([(edges >> n) & 1 for n in range(neighbours)]).sum(0).numpy()
    at = bits / neighbours * (len(_RAMP) - 1)
    low = np.minimum(at.astype(int), len(_RAMP) - 2)
    part = (at - low)[..., None]
    return (_RAMP[low] * (1 - part) + _RAMP[low + 1] * part).round().astype(np.uint8)


def instance_picture(instances: Tensor, photograph: Tensor | None = None, strength: float = 0.6) -> np.ndarray:
    """Instances in colours, over the photograph if there is one.

    Args:
        instances: ``[H, W]``: 0, or the number of the instance.
        photograph: uint8 ``[3, H, W]``.
        strength: Of the colours over the photograph, 0 to 1.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    numbers = instances.numpy()
    painted = colours(int(numbers.max(initial=0)))[numbers]
    if photograph is None:
        return painted
    pixels = photograph.permute(1, 2, 0).numpy()
    mixed = (1 - strength) * pixels + strength * painted
    return np.where((numbers > 0)[..., None], mixed.round().astype(np.uint8), pixels)


def colours(count: int) -> np.ndarray:
    """Black, then ``count`` colours of which neighbours in the list differ: uint8 ``[count + 1, 3]``."""
    golden = 0.6180339887
    found = [
        colorsys.hsv_to_rgb((n * golden) % 1, 0.55 + 0.4 * (n % 2), 1.0 - 0.25 * (n % 3 == 2)) for n in range(count)
    ]
    return (np.array([(0.0, 0.0, 0.0), *found]) * 255).round().astype(np.uint8)
