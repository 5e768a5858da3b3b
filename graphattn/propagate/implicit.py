"""Propagators that solve a linear system in the attention matrix, and differentiate the solution and not the solver."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.propagate._dense import Padded, dense_blocks
from graphattn.propagate._gmres import Solution, gmres
from graphattn.propagate._once import once
from graphattn.propagate._radius import check_converges
from graphattn.propagate._series import need_square
from graphattn.propagate.base import Propagator
from graphattn.propagate.operator import AttentionOperator
from graphattn.propagate.report import SolveReport

__all__ = ["ImplicitPropagator"]

_METHODS = ("auto", "dense", "gmres")
# A member of up to this many tokens is solved as a matrix. 4096 tokens in members of 128, 256 and 512, 16 in-edges
# each, softmax weights, 8 heads of 16, float32, discount 0.9, tolerance 1e-6, forward and backward, processor time on
# one core: dense 92, 210 and 446 ms, GMRES 457, 468 and 408 ms.
_DENSE_TOKENS = 256

Solver = Callable[[Tensor, bool], Solution]


class ImplicitPropagator(Propagator):
    """A propagator with :math:`x = b + \\gamma A x`.

    Solved by LU where every member is small, else by restarted GMRES to a tolerance, without a gradient; the gradient
    is that of the solution: :math:`\\bar b = u`, :math:`\\bar A = \\gamma u x^T`, with one more system,
    :math:`u = g + \\gamma A^T u`. So memory does not depend on the number of iterations. It can be differentiated once.

    After a call, :attr:`report` says how it went, and :attr:`adjoint_report` the same of the last backward pass. Where
    the tolerance was not reached, a warning says so. It waits for the device, so it breaks a compiled graph.

    Args:
        method: ``"dense"``, ``"gmres"``, or ``"auto"``: dense where no member has more than 256 tokens.
        tolerance: On the residual of each member, head and channel, :math:`\\lVert b - (I - \\gamma A) x \\rVert
            \\le \\tau (\\lVert b \\rVert + \\lVert x \\rVert)`; default: 1e-10 in float64, 1e-6 in float32.
        max_products: Give up after so many products with A.
        check: Make sure that the series converges, and raise where it does not. Without it, a system that has a
            solution is solved, even where the series that it stands for diverges.

    Raises:
        ArgumentError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        method: str = "auto",
        tolerance: float | None = None,
        max_products: int = 2000,
        check: bool = True,
    ) -> None:
        super().__init__()
        if method not in _METHODS:
            raise ArgumentError(f"method must be one of {', '.join(map(repr, _METHODS))}, got {method!r}")
        if tolerance is not None and not 0 < tolerance < 1:
            raise ArgumentError(f"tolerance must be between 0 and 1, got {tolerance}")
        if max_products < 1:
            raise ArgumentError(f"max_products must be at least 1, got {max_products}")
        self.method, self.tolerance, self.max_products, self.check = method, tolerance, max_products, check
        self.report: SolveReport | None = None
        self.adjoint_report: SolveReport | None = None

    def solve(self, operator: AttentionOperator, b: Tensor, gamma: float | Tensor) -> Tensor:
        """:math:`(I - \\gamma A)^{-1} b`, differentiable in A, b and gamma.

        Args:
            operator: The weighted graph A, square.
            b: ``[N, H, D]``.
            gamma: A number, or a tensor as it multiplies rows.

        Raises:
            ArgumentError: If the graph is not square or the series cannot converge.
        """
        need_square(operator)
        name = type(self).__name__
        if not b.numel():
            return b + gamma * operator.matmul(b)
        radius = check_converges(name, operator, gamma, b) if self.check else None
        tolerance = self.tolerance or (1e-10 if b.dtype == torch.float64 else 1e-6)
        method, solver = self._solver(operator, b, gamma, tolerance)

        def run(right: Tensor, adjoint: bool) -> Tensor:
            found = solver(right.detach(), adjoint)
            report = SolveReport(method, found.products, found.residual, tolerance, radius)
            setattr(self, "adjoint_report" if adjoint else "report", report)
            if not report.converged:
                warnings.warn(
                    f"{name}{' (backward)' if adjoint else ''}: a residual of {found.residual:.3g} after "
                    f"{found.products} products, where the tolerance is {tolerance:.3g}; raise max_products or "
                    f"tolerance, or use method='dense'",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return found.x

        x = run(b, False)
        if not torch.is_grad_enabled():
            return x
        # One product with a gradient leads to the weights and the discount; the adjoint comes in where it leaves.
        return _Adjoint.apply(b + gamma * operator.matmul(x), lambda slope: run(slope, True))  # type: ignore[no-any-return]

    def _solver(
        self, operator: AttentionOperator, b: Tensor, gamma: float | Tensor, tolerance: float
    ) -> tuple[str, Solver]:
        members = operator.members
        factor = gamma.detach() if isinstance(gamma, Tensor) else gamma

        def apply(x: Tensor, adjoint: bool) -> Tensor:
            with torch.no_grad():
                return x - (operator.t_matmul(factor * x) if adjoint else factor * operator.matmul(x))

        size = int(members.ptr.diff().max())
        if self.method == "dense" or (self.method == "auto" and size <= _DENSE_TOKENS):
            padded = Padded(members, size)
            blocks = padded.pad((factor * torch.ones_like(b[..., :1])).contiguous())
            matrix = torch.eye(size, dtype=b.dtype, device=b.device) - blocks * dense_blocks(
                operator, padded, b.shape[1], b.dtype
            )
            lu = torch.linalg.lu_factor(matrix)

            def dense(right: Tensor, adjoint: bool) -> Solution:
                x = padded.unpad(torch.linalg.lu_solve(*lu, padded.pad(right), adjoint=adjoint))
                rest = members.sum((right - apply(x, adjoint)).square()).sqrt()
                size = members.sum(right.square()).sqrt() + members.sum(x.square()).sqrt()
                return Solution(x, 1, float((rest / size.clamp(min=torch.finfo(b.dtype).tiny)).max()))

            return "dense", dense

        def iterate(right: Tensor, adjoint: bool) -> Solution:
            return gmres(
                lambda x: apply(x, adjoint), right, members, tolerance=tolerance, max_products=self.max_products
            )

        return "gmres", iterate

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"method={self.method!r}, tolerance={self.tolerance}"


class _Adjoint(torch.autograd.Function):
    """Nothing forward; backward, the slope goes through a function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, adjoint: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.adjoint = adjoint
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return once(ctx.adjoint(slope)), None
