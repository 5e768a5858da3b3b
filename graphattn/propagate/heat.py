"""Diffusion for a time t."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.propagate._gamma import check_number, rows_of, shown
from graphattn.propagate._series import again, need_square, series
from graphattn.propagate.base import PROPAGATORS, Propagator
from graphattn.propagate.operator import AttentionOperator
from graphattn.propagate.report import SolveReport

__all__ = ["HeatKernel"]

# The largest norm of one Taylor polynomial's argument: exp(-32) is far from the smallest float32.
_MOST = 32.0


@PROPAGATORS.register("heat")
class HeatKernel(Propagator):
    """:math:`y = \\exp(t (A - I)) v = e^{-t} \\sum_{k \\ge 0} \\frac{t^k}{k!} A^k v`.

    Kondor & Lafferty, "Diffusion Kernels on Graphs" (ICML 2002); Klicpera et al., "Diffusion Improves Graph Learning"
    (NeurIPS 2019), eq. 4. With rows that sum to 1 (softmax), so do the rows of the whole. It converges for any weights.

    A Taylor polynomial by Horner's rule, whose degree follows from the tolerance and a bound of the norm of the weights
    before anything is computed; a long time is cut into equal steps of a norm of at most 32. The gradient is that of
    the polynomial, exactly, with O(log K) stored states for a step of degree K, and one for each further step.

    Args:
        time: t, at least 0; or a tensor ``[]`` or ``[H]``, one for each head, with a gradient.
        terms: Degree of a single polynomial, instead of a tolerance: it then never waits for the device and compiles.
        tolerance: On what is left out, relative to :math:`e^{t \\lVert A \\rVert - t} \\lVert v \\rVert`; default:
            1e-12 in float64, 1e-6 in float32.

    After a call with a tolerance, ``report`` holds a :class:`SolveReport`.

    Raises:
        ArgumentError: If an argument is out of range.
        ArgumentTypeError: If time is neither a number nor a floating tensor.
    """

    def __init__(self, time: float | Tensor = 1.0, *, terms: int | None = None, tolerance: float | None = None) -> None:
        super().__init__()
        self.time = check_number("time", time, 0.0)
        if terms is not None and (isinstance(terms, bool) or not isinstance(terms, int) or terms < 1):
            raise ArgumentError(f"terms must be an integer of at least 1 or None, got {terms!r}")
        if tolerance is not None and not 0 < tolerance < 1:
            raise ArgumentError(f"tolerance must be between 0 and 1, got {tolerance}")
        self.terms, self.tolerance = terms, tolerance
        self.report: SolveReport | None = None

    def forward(self, operator: AttentionOperator, values: Tensor) -> Tensor:
        """See :meth:`Propagator.forward`; square graphs only."""
        need_square(operator)
        steps, terms = (1, self.terms) if self.terms is not None else self._plan(operator, values)
        time = rows_of(operator, self.time, values)
        step = time / steps
        decay = step.neg().exp() if isinstance(step, Tensor) else math.exp(-step)

        def once(values: Tensor) -> Tensor:
            return decay * (values + series(operator, values, [step / k for k in range(terms, 0, -1)]))

        for _ in range(steps):
            values = once(values) if steps == 1 else again(once, values)
        return values

    def _plan(self, operator: AttentionOperator, values: Tensor) -> tuple[int, int]:
        """How many steps of which degree."""
        tolerance = self.tolerance or (1e-12 if values.dtype == torch.float64 else 1e-6)
        bound = operator.bound()
        radius = float(bound.max()) if bound.numel() else 0.0
        longest = float(self.time.detach().max()) if isinstance(self.time, Tensor) else self.time
        reach = max(longest * radius, longest)
        if not reach < 1e6:
            raise ArgumentError(
                f"HeatKernel: time {longest:.6g} with weights whose norm is bounded by {radius:.6g} would take "
                f"more than {reach:.3g} products; take a shorter time or normalise the weights"
            )
        steps = max(1, math.ceil(reach / _MOST))
        terms, left = degree(longest * radius / steps, tolerance / steps)
        self.report = SolveReport("series", steps * terms, steps * left, tolerance, radius)
        return steps, terms

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"time={shown(self.time)}, terms={self.terms}, tolerance={self.tolerance}"


def degree(x: float, tolerance: float) -> tuple[int, float]:
    """The least K of at least 1 with :math:`e^{-x} \\sum_{k > K} x^k / k! \\le \\tau`, and what that leaves out."""
    if x <= 0:
        return 1, 0.0
    # Terms of the tail from the far end, so that none is lost to rounding.
    last = math.ceil(x + 12 * math.sqrt(x) + 60)
    tail = 0.0
    for k in range(last, 1, -1):
        more = tail + math.exp(k * math.log(x) - x - math.lgamma(k + 1))
        if more > tolerance:
            return k, tail
        tail = more
    return 1, tail
