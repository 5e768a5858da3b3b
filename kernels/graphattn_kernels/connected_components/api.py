"""Public function: validation that no backend may differ on, and choice of backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphattn_kernels import backends
from graphattn_kernels._grid import OFFSETS
from graphattn_kernels.connected_components import ops
from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

__all__ = ["connected_components"]


def connected_components(edges: Tensor, *, neighbours: int = 8, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Label the connected components of images whose pixels say which neighbours they are joined to.

    Union-find with the smallest index as the root, so that labels never depend on the order in which edges are joined:
    1, 2, ... in the order of each component's first pixel (row by row), as ``scipy.ndimage.label`` gives them. A pixel
    without any edge is background, 0.

    Args:
        edges: uint8 ``[..., H, W]``, bit c for the neighbour of channel c, as :func:`graphattn_kernels.agreed_edges`
            gives them. Must be reciprocal (not checked): an edge may be looked at from either end only.
        neighbours: 8 or 4: what the bits stand for.
        backend: ``"auto"``, ``"triton"``, ``"numba"`` or ``"gather"`` (plain PyTorch, any device; waits for it).

    Returns:
        Labels int32 ``[..., H, W]``, and the number of components of each image, int32 ``[...]``. Nothing waits for
        the device with ``"triton"``.

    Raises:
        ArgumentError: If the shape or ``neighbours`` does not fit, or there are 2^31 pixels or more.
        ArgumentTypeError: If the type does not fit.
        BackendError: If a backend that was named cannot run here.
    """
    if not isinstance(edges, Tensor) or edges.dtype != torch.uint8:
        got = edges.dtype if isinstance(edges, Tensor) else type(edges).__name__
        raise ArgumentTypeError(f"edges must be a uint8 tensor (a bit for each neighbour), got {got}")
    if edges.dim() < 2:
        raise ArgumentError(f"edges must be [..., H, W], got {list(edges.shape)}")
    if neighbours not in OFFSETS:
        raise ArgumentError(f"neighbours must be 4 or 8, got {neighbours!r}")
    if edges.numel() >= 2**31:
        raise ArgumentError(f"edges must have fewer than 2^31 pixels, got {list(edges.shape)}; label a part at a time")
    name = backends.choose(backend, edges.device)
    leading, size = edges.shape[:-2], edges.shape[-2:]
    flat = edges.reshape(math.prod(leading), *size)
    labels, counts = ops.connected_components(flat, neighbours, "gather" if name == "reference" else name)
    return labels.reshape(*leading, *size), counts.reshape(leading)
