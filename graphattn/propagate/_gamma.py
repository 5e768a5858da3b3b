"""Numbers that a propagator is given: one for all heads or one for each, fixed or learned."""

from __future__ import annotations

from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.propagate.operator import AttentionOperator

__all__ = ["check_number", "rows_of", "shown"]


def check_number(name: str, x: float | Tensor, low: float, high: float = float("inf")) -> float | Tensor:
    """The argument, if it is a number in ``[low, high]`` or a floating tensor ``[]`` or ``[H]``.

    The values of a tensor are not looked at: that would wait for the device.
    """
    if isinstance(x, Tensor):
        if not x.is_floating_point():
            raise ArgumentTypeError(f"{name} must be a floating tensor, got {x.dtype}")
        if x.dim() > 1:
            raise ArgumentError(f"{name} must be a number or a tensor [] or [H], got {list(x.shape)}")
        return x
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise ArgumentTypeError(f"{name} must be a number or a tensor [] or [H], got {type(x).__name__}")
    if not low <= x <= high:
        bounds = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise ArgumentError(f"{name} must be {bounds}, got {x}")
    return float(x)


def rows_of(operator: AttentionOperator, x: float | Tensor, like: Tensor) -> float | Tensor:
    """As it multiplies rows of values."""
    return operator.per_head(x.to(like.dtype)) if isinstance(x, Tensor) else x


def shown(x: float | Tensor) -> str:
    """For ``repr``."""
    return f"tensor{list(x.shape)}" if isinstance(x, Tensor) else f"{x:g}"
