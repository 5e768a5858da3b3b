"""What a propagator is, and the table of propagators that have a name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentTypeError
from graphattn.propagate.operator import AttentionOperator
from graphattn.registry import Registry

__all__ = ["PROPAGATORS", "Propagator", "resolve_propagator"]


class Propagator(nn.Module):
    """Moves values along the weights of a token graph."""

    def forward(self, operator: AttentionOperator, values: Tensor) -> Tensor:
        """Values at the targets.

        Args:
            operator: The weighted graph.
            values: ``[S, H, D]``.

        Returns:
            ``[T, H, D]``.
        """
        raise NotImplementedError


# Filled where this room is imported: torch.compile cannot trace the import of a lazy entry.
PROPAGATORS: Registry[type[Propagator]] = Registry("propagator")
_MADE: dict[str, Propagator] = {}  # by name, once: making a module takes as long as a small call of attend


def resolve_propagator(propagator: str | Propagator) -> Propagator:
    """A propagator from its name or as it is.

    Raises:
        ArgumentError: If no propagator has this name.
        ArgumentTypeError: If it is neither a name nor a propagator.
    """
    if isinstance(propagator, Propagator):
        return propagator
    if isinstance(propagator, str):
        if torch.compiler.is_compiling():  # would compile again when the table grows
            return PROPAGATORS.get(propagator)()
        if propagator not in _MADE:
            _MADE[propagator] = PROPAGATORS.get(propagator)()
        return _MADE[propagator]
    raise ArgumentTypeError(f"propagator must be a name or a Propagator, got {type(propagator).__name__}")
