"""Normalisation of rows, by name."""

from __future__ import annotations

from torch import nn

from graphattn.errors import ArgumentError

__all__ = ["make_norm"]

_NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


def make_norm(name: str, width: int) -> nn.Module:
    """A module that normalises rows ``[N, width]``.

    Args:
        name: ``"batch"`` (over all rows of the mini-batch), ``"layer"`` (each row by itself) or ``"none"``.
        width: Channels.

    Raises:
        ArgumentError: If there is no norm of this name.
    """
    if name not in _NORMS:
        raise ArgumentError(f"norm must be one of {sorted(_NORMS)}, got {name!r}")
    return _NORMS[name](width)
