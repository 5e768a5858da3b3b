"""The sign of an eigenvector: chosen by a rule, or drawn at random to train against the choice."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from graphattn.encoding._structure import check_choice
from graphattn.errors import ArgumentError, ArgumentTypeError

__all__ = ["flip_signs"]

# Magnitudes this close count as tied, so that rounding (1e-8 at most, see eigen.py) cannot decide.
_TIE = 1e-6


def fix_signs(vectors: np.ndarray) -> np.ndarray:
    """Signs by rule: the entry of largest magnitude is positive; of tied entries the first token's decides.

    Args:
        vectors: ``[..., n, m]``, one vector a column.
    """
    if vectors.shape[-2] == 0 or vectors.shape[-1] == 0:
        return vectors
    magnitude = np.abs(vectors)
    largest = magnitude >= (1 - _TIE) * magnitude.max(axis=-2, keepdims=True)
    first = largest.argmax(axis=-2)[..., None, :]
    return vectors * np.where(np.take_along_axis(vectors, first, axis=-2) < 0, -1.0, 1.0)


def flip_signs(
    pe: Tensor, per: str = "graph", *, ptr: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Multiply each column of an encoding by a random sign, the usual augmentation for Laplacian encodings.

    `"A Generalization of Transformer Networks to Graphs" <https://arxiv.org/abs/2012.09699>`_ draws one
    vector of ``k`` signs for each mini-batch in training and none in evaluation: ``per="batch"``.

    Args:
        pe: ``[N, k]`` encoding of one graph or of a batch.
        per: ``"graph"``: signs for each member of ``ptr``; ``"batch"``: the same signs for all.
        ptr: ``[B + 1]`` first token of each member (PyG's ``ptr``); default: one member.
        generator: Source of the signs. Default: torch's own for the CPU, which ``torch.manual_seed`` and a
            DataLoader's workers seed, as for dropout.

    Returns:
        ``[N, k]``, a new tensor.

    Raises:
        ArgumentTypeError: If ``pe`` is not a floating tensor.
        ArgumentError: If ``pe`` is not a matrix, ``per`` is unknown or ``ptr`` does not end with ``N``.
    """
    if not isinstance(pe, Tensor) or not pe.is_floating_point():
        got = pe.dtype if isinstance(pe, Tensor) else type(pe).__name__
        raise ArgumentTypeError(f"pe must be a floating tensor of shape [N, k], got {got}")
    if pe.dim() != 2:
        raise ArgumentError(f"pe must have shape [N, k], got {list(pe.shape)}")
    check_choice("per", per, ("graph", "batch"))
    if ptr is not None and (ptr.dim() != 1 or ptr.numel() == 0 or int(ptr[-1]) != pe.shape[0]):
        raise ArgumentError(f"ptr must be [B + 1] and end with the number of rows of pe, {pe.shape[0]}, got {ptr}")
    members = ptr.numel() - 1 if ptr is not None and per == "graph" else 1
    device = generator.device if generator is not None else torch.device("cpu")
    signs = torch.randint(0, 2, (members, pe.shape[1]), generator=generator, device=device)
    signs = (2 * signs - 1).to(pe.device, pe.dtype)
    if members > 1:
        assert ptr is not None
        signs = signs.repeat_interleave(ptr.diff().to(pe.device), dim=0)
    return pe * signs
