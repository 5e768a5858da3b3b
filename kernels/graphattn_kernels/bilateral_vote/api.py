"""Public functions: validation that no backend may differ on, and choice of backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphattn_kernels._calls import triton_or
from graphattn_kernels._grid import check_cube
from graphattn_kernels.bilateral_vote import ops
from graphattn_kernels.bilateral_vote.impl import reference
from graphattn_kernels.errors import ArgumentError

__all__ = ["agreed_edges", "bilateral_vote"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def bilateral_vote(cube: Tensor, *, reduce: str | int = "max", logits: bool = True, backend: str = "auto") -> Tensor:
    """A saliency map from a connectivity cube, in one pass over it.

    .. math::
        V_c(p) = P_c(p)\\, P_{K-1-c}(p + o_c) \\quad (0 \\text{ outside the image}), \\qquad S(p) = \\max_c V_c(p)

    Yang et al., "BiconNet" (Pattern Recognition 2022), whose name and rule this is ("bilateral voting"); ConnNet (arXiv
    1804.07836) agrees by a threshold, see :func:`agreed_edges`. The gradient of the maximum goes to the first of equal
    channels.

    Args:
        cube: ``[..., K, H, W]``, K = 8 or 4: logits, or probabilities in 0..1 (not checked).
        reduce: ``"max"``; ``"mean"`` over the K channels; ``"min"``; or a number k: the k-th largest (k of the K
            neighbours agree at least so much; 1 is ``"max"``, K is ``"min"``).
        logits: Whether ``cube`` holds logits, whose sigmoid is P.
        backend: ``"auto"``, ``"triton"``, ``"gather"`` (plain PyTorch, any device) or ``"reference"`` (differentiable
            any number of times).

    Returns:
        ``[..., H, W]`` in the dtype of ``cube``; half types are computed in float32.

    Raises:
        ArgumentError: If the shape or ``reduce`` does not fit.
        ArgumentTypeError: If the type does not fit.
        BackendError: If a backend that was named cannot run here.
    """
    check_cube("cube", cube)
    rank = _rank(reduce, cube.shape[-3])
    name = _select(backend, cube, rank)
    flat = cube.reshape(math.prod(cube.shape[:-3]), *cube.shape[-3:])
    if name == "reference":
        out = reference.bilateral_vote(flat, rank, logits)
    else:
        out = ops.bilateral_vote(flat, rank, logits, name)
    return out.reshape(*cube.shape[:-3], *cube.shape[-2:])


def agreed_edges(cube: Tensor, *, threshold: float = 0.5, logits: bool = True, backend: str = "auto") -> Tensor:
    """Which edges of the grid both ends agree on, one bit for each channel, in one pass over the cube.

    Bit c of a pixel is set where :math:`P_c(p) > \\tau` and :math:`P_{K-1-c}(p + o_c) > \\tau`: the rule of Kampffmeyer
    et al., "ConnNet" (arXiv 1804.07836; the threshold of the paper could not be verified). A pixel is salient where any
    bit is set. What :func:`~graphattn_kernels.connected_components` takes.

    Args:
        cube: ``[..., K, H, W]``, K = 8 or 4: logits or probabilities.
        threshold: A probability.
        logits: Whether ``cube`` holds logits.
        backend: ``"auto"``, ``"triton"`` or ``"gather"``.

    Returns:
        uint8 ``[..., H, W]``; reciprocal (bit c of p is bit K - 1 - c of its neighbour). No gradient.

    Raises:
        ArgumentError: If the shape or ``threshold`` does not fit.
        ArgumentTypeError: If the type does not fit.
        BackendError: If a backend that was named cannot run here.
    """
    check_cube("cube", cube)
    if not 0.0 <= threshold <= 1.0:
        raise ArgumentError(f"threshold must be a probability in 0..1, got {threshold}")
    at = _logit(threshold) if logits else threshold
    flat = cube.detach().reshape(math.prod(cube.shape[:-3]), *cube.shape[-3:])
    out = ops.agreed_edges(flat, at, _select("gather" if backend == "reference" else backend, cube, 1))
    return out.reshape(*cube.shape[:-3], *cube.shape[-2:])


def _rank(reduce: str | int, neighbours: int) -> int:
    """1 to K: the k-th largest vote; 0: their mean."""
    names = {"mean": 0, "max": 1, "min": neighbours}
    if isinstance(reduce, str) and reduce in names:
        return names[reduce]
    if isinstance(reduce, int) and not isinstance(reduce, bool) and 1 <= reduce <= neighbours:
        return reduce
    raise ArgumentError(f"reduce must be 'max', 'mean', 'min' or a number in 1..{neighbours}, got {reduce!r}")


def _logit(p: float) -> float:
    return math.log(p / (1.0 - p)) if 0.0 < p < 1.0 else math.copysign(math.inf, p - 0.5)


def _select(backend: str, cube: Tensor, rank: int) -> str:
    if backend in ("reference", "gather"):
        return backend

    def lacks() -> str | None:
        if cube.dtype not in _DTYPES:
            return f"it takes float16, bfloat16 or float32, got {cube.dtype}"
        if 1 < rank < cube.shape[-3]:
            return f"it takes the largest vote, the smallest or the mean, not the {rank}-th largest"
        if cube.shape[-1] * cube.shape[-2] >= 2**31:
            return f"it takes images of fewer than 2^31 pixels, got {list(cube.shape[-2:])}"
        return None

    return triton_or("gather", backend, cube.device, lacks)
