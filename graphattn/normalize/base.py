"""What a normaliser is, and the table of normalisers that have a name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.registry import Registry

__all__ = ["NORMALIZERS", "Normalizer", "resolve_normalizer"]


class Normalizer(nn.Module):
    """Turns the scores of all edges into weights."""

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """Weights of each edge.

        Args:
            graph: The token graph.
            scores: ``[E, H]`` in the caller's edge order.
            backend: Which kernels to use.

        Returns:
            ``[E, H]``.
        """
        raise NotImplementedError


# Filled where this room is imported: torch.compile cannot trace the import of a lazy entry.
NORMALIZERS: Registry[type[Normalizer]] = Registry("normalizer")
_MADE: dict[str, Normalizer] = {}  # by name, once: making a module takes as long as a small call of attend


def resolve_normalizer(normalizer: str | Normalizer) -> Normalizer:
    """A normaliser from its name or as it is.

    Raises:
        ArgumentError: If no normaliser has this name.
        ArgumentTypeError: If it is neither a name nor a normaliser.
    """
    if isinstance(normalizer, Normalizer):
        return normalizer
    if isinstance(normalizer, str):
        if torch.compiler.is_compiling():  # would compile again when the table grows
            return NORMALIZERS.get(normalizer)()
        if normalizer not in _MADE:
            _MADE[normalizer] = NORMALIZERS.get(normalizer)()
        return _MADE[normalizer]
    raise ArgumentTypeError(f"normalizer must be a name or a Normalizer, got {type(normalizer).__name__}")
