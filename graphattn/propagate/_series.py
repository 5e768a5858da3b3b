"""A polynomial in the operator by Horner's rule, with few states stored for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from graphattn.errors import ArgumentError
from graphattn.propagate.operator import AttentionOperator

__all__ = ["again", "need_square", "series"]


def series(operator: AttentionOperator, values: Tensor, factors: Sequence[float | Tensor]) -> Tensor:
    """:math:`y_K`, where :math:`y_0 = 0` and :math:`y_j = f_j A (v + y_{j-1})`.

    With one factor throughout, :math:`y_K = \\sum_{1 \\le k \\le K} f^k A^k v`.

    The gradient is exact. Step j needs the state before it; :math:`s = \\lceil \\log_2 K \\rceil` states are kept and
    the others computed again, by the schedule that needs the fewest repetitions: Griewank & Walther, "Revolve" (ACM
    TOMS 26, 2000), by which s states and r repetitions serve :math:`\\binom{s + r}{s}` steps. With that many states, r
    is 3 up to K = 84 and 4 up to K = 1287. What compiles is cut once only, in pieces of :math:`\\sqrt K` steps.

    Args:
        operator: The weighted graph, square.
        values: ``[N, H, D]``.
        factors: One for each step, a number or a tensor that broadcasts to the values.
    """
    need_square(operator)
    steps = len(factors)

    def run(first: int, last: int, y: Tensor | None) -> Tensor | None:
        for factor in factors[first:last]:
            y = factor * operator.matmul(values if y is None else values + y)
        return y

    if not torch.is_grad_enabled() or steps < 2:
        y = run(0, steps, None)
    elif torch.compiler.is_compiling():
        y = _in_pieces(run, steps)
    else:
        y = _revolve(run, 0, steps, None, slots=max(1, math.ceil(math.log2(steps))))
    return torch.zeros_like(values) if y is None else y


_Run = Callable[[int, int, Tensor | None], Tensor | None]


T = TypeVar("T")


def again(function: Callable[..., T], *args: Any) -> T:
    """Call now and, for the backward pass, once more, storing the arguments only."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def _in_pieces(run: _Run, steps: int) -> Tensor | None:
    y, piece = None, math.isqrt(steps - 1) + 1
    for first in range(0, steps, piece):
        y = again(run, first, min(first + piece, steps), y)
    return y


def _revolve(run: _Run, first: int, last: int, y: Tensor | None, slots: int) -> Tensor | None:
    """Steps first .. last - 1, of whose states ``slots`` are stored at a time, that before the first included."""
    while last - first > 1 and slots > 1:
        # The first piece is forgotten and run again from its first state, with all slots free by then; of the rest,
        # only the backward pass of the first piece waits, in one slot.
        piece = _first_piece(last - first, slots)
        if piece == 1:
            y = again(run, first, first + 1, y)
        else:
            y = again(_revolve, run, first, first + piece, y, slots)
        first, slots = first + piece, slots - 1
    # One slot: every step starts again from the state before all of them.
    return _one_slot(run, first, last, y)


def _one_slot(run: _Run, first: int, last: int, y: Tensor | None) -> Tensor | None:
    if last - first > 1:
        y = again(_one_slot, run, first, last - 1, y)
        first = last - 1
    return run(first, last, y)


def _first_piece(steps: int, slots: int) -> int:
    """How many of the steps come before the next state that is stored."""
    repeats = 1
    while math.comb(slots + repeats, slots) < steps:
        repeats += 1
    # The rest has one slot less; the more of the steps it takes, the fewer are repeated.
    return max(1, steps - math.comb(slots - 1 + repeats, slots - 1))


def need_square(operator: AttentionOperator) -> None:
    """Raise unless the operator can be applied twice."""
    if operator.num_targets != operator.num_sources:
        raise ArgumentError(
            f"this propagator needs a square graph, got {operator.num_targets} targets and "
            f"{operator.num_sources} sources"
        )
