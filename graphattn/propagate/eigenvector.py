"""Where walks end: the dominant eigenvectors of the attention matrix."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph.members import Members
from graphattn.propagate._gmres import gmres
from graphattn.propagate._once import once
from graphattn.propagate._series import need_square
from graphattn.propagate.base import PROPAGATORS, Propagator
from graphattn.propagate.operator import AttentionOperator
from graphattn.propagate.report import SolveReport

__all__ = ["Eigenpair", "Eigenvector", "dominant_eigenvector"]


class Eigenpair(NamedTuple):
    """What :func:`dominant_eigenvector` found."""

    value: Tensor
    """``[M, H]``, one for each member and head; 0 where no walk goes on for ever."""
    vector: Tensor
    """``[N, H]``, of norm 1 in each member, and 0 where the value is; its sum is not negative."""
    report: SolveReport


@torch.no_grad()
def dominant_eigenvector(
    operator: AttentionOperator,
    side: str = "right",
    *,
    symmetric: bool = False,
    tolerance: float | None = None,
    max_products: int = 5000,
) -> Eigenpair:
    """The eigenvalue of largest real part, and its right (:math:`A r = \\lambda r`) or left
    (:math:`A^T l = \\lambda l`) eigenvector, of each member and head.

    For weights that are not negative, the Perron vector: the right one says how much a target reaches, the left one
    how much is read of a source. By power iteration, every other time on :math:`A + \\tfrac{1}{4} \\lambda I`,
    which converges on periodic (bipartite, say) graphs, too; where A is symmetric, by restarted Lanczos, in fewer
    products. Waits for the device.

    Args:
        operator: The weighted graph, square.
        side: ``"right"`` or ``"left"``.
        symmetric: A is symmetric, and Lanczos may be used.
        tolerance: On :math:`\\lVert A x - \\lambda x \\rVert / \\lambda`; default: 1e-10 in float64, 1e-5 in float32.
        max_products: Give up after so many products with A, with a warning.

    Raises:
        ArgumentError: If side is another word, or the graph is not square.
    """
    need_square(operator)
    if side not in ("right", "left"):
        raise ArgumentError(f"side must be 'right' or 'left', got {side!r}")
    members, rows = operator.members, operator.row_sum()
    tolerance = tolerance or (1e-10 if rows.dtype == torch.float64 else 1e-5)
    product = operator.matmul if side == "right" else operator.t_matmul
    x = torch.ones_like(rows).unsqueeze(-1)
    x = x / _norm(x, members, spread=True)
    products, residual, value = 0, 0.0, rows.new_zeros(members.count, rows.shape[1], 1)
    while x.numel():
        if symmetric:
            x, used = _lanczos(product, x, members)
            products += used
        y = product(x)
        products += 1
        value = members.sum(x * y)
        size = torch.where(value > 0, value, 1)
        residual = float((_norm(y - members.spread(value) * x, members) / size).max())
        if residual <= tolerance or products >= max_products or not residual < float("inf"):
            break
        if not symmetric:
            # With a shift every other time: it parts lambda from -lambda; without it, walks that end become 0.
            x = y + members.spread(0.25 * value.clamp(min=0.0)) * x if products % 2 else y
            x = x / _norm(x, members, spread=True)
    report = SolveReport("lanczos" if symmetric else "power", products, residual, tolerance)
    if not report.converged:
        warnings.warn(
            f"dominant_eigenvector: a residual of {residual:.3g} after {products} products, where the tolerance is "
            f"{tolerance:.3g}: another eigenvalue is close; raise max_products or tolerance",
            RuntimeWarning,
            stacklevel=2,
        )
    x = x * torch.where(members.spread(members.sum(x)) < 0, -1.0, 1.0)
    alive = value > 0
    return Eigenpair(torch.where(alive, value, 0)[..., 0], torch.where(members.spread(alive), x, 0)[..., 0], report)


def _norm(x: Tensor, members: Members, spread: bool = False) -> Tensor:
    norm = members.sum(x.square()).sqrt()
    return members.spread(torch.where(norm > 0, norm, 1)) if spread else norm


def _lanczos(product: Any, x: Tensor, members: Members, size: int = 12) -> tuple[Tensor, int]:
    """The best approximation out of the Krylov space of x, orthogonalised in full."""
    basis: list[Tensor] = [x]
    columns: list[list[Tensor]] = []
    for n in range(size):
        w = product(basis[n])
        column: list[Tensor] = []
        for _ in range(2):
            for k, v in enumerate(basis):
                part = members.sum(w * v)
                w = w - members.spread(part) * v
                if len(column) <= k:
                    column.append(part)
                else:
                    column[k] = column[k] + part
        columns.append(column)
        norm = _norm(w, members)
        keep = norm > 64 * torch.finfo(x.dtype).eps * columns[0][0].abs().clamp(min=torch.finfo(x.dtype).tiny)
        basis.append(torch.where(members.spread(keep), w / members.spread(torch.where(keep, norm, 1)), 0))
    matrix = torch.stack([torch.cat([*c, *[torch.zeros_like(c[0])] * (size - len(c))], -1) for c in columns], -1)
    matrix = torch.triu(matrix) + torch.triu(matrix, 1).mT
    # A basis that is complete has zero vectors, whose eigenvalue 0 may not win.
    used = torch.stack([members.sum(v.square())[..., 0] for v in basis[:size]], -1)
    ritz = torch.linalg.eigh(matrix - torch.diag_embed((1 - used) * (matrix.abs().amax((-1, -2)) + 1).unsqueeze(-1)))
    top = ritz.eigenvectors[..., -1]
    x = sum((members.spread(top[..., n : n + 1]) * v for n, v in enumerate(basis[:size])), torch.zeros_like(x))
    return x / _norm(x, members, spread=True), size


@PROPAGATORS.register("eigenvector")
class Eigenvector(Propagator):
    """:math:`y = P v`, :math:`P = r l^T / (l^T r)`: what many hops leave, :math:`\\lim_k (A / \\lambda)^k v`.

    Every target of a member gets the same mixture :math:`l^T v` of the values, as much of it as its entry in r says.
    The gradient is that of the spectral projector (Kato, "Perturbation Theory for Linear Operators", II.2): for a
    simple eigenvalue, :math:`dP = P\\, dA\\, S + S\\, dA\\, P` with the reduced resolvent :math:`S` of A at
    :math:`\\lambda`, by two linear solves. It can be differentiated once. A member whose walks all end gets 0. Where
    the largest eigenvalue is not simple (two strongly connected parts with the same one, say), there is no such limit,
    and the result depends on where the iteration starts. Waits for the device.

    Args:
        symmetric: A is symmetric: Lanczos instead of power iteration.
        tolerance: See :func:`dominant_eigenvector`.
        max_products: Likewise, and of each solve of the gradient.

    After a call, ``report`` holds a :class:`SolveReport` (of the right eigenvector).
    """

    def __init__(self, *, symmetric: bool = False, tolerance: float | None = None, max_products: int = 5000) -> None:
        super().__init__()
        self.symmetric, self.tolerance, self.max_products = symmetric, tolerance, max_products
        self.report: SolveReport | None = None

    def forward(self, operator: AttentionOperator, values: Tensor) -> Tensor:
        """See :meth:`Propagator.forward`; square graphs only."""
        options: dict[str, Any] = {"tolerance": self.tolerance, "max_products": self.max_products}
        right = dominant_eigenvector(operator, symmetric=self.symmetric, **options)
        left = right if self.symmetric else dominant_eigenvector(operator, "left", **options)
        self.report = right.report
        projector = _Projector(operator, right, left, right.report.tolerance, self.max_products)
        if not torch.is_grad_enabled():
            return projector.project(values)
        with torch.no_grad():
            y, z = projector.project(values), projector.reduce(values)
        # Products whose values are thrown away: they lead to the weights.
        return _Project.apply(values, operator.matmul(z), operator.matmul(y), y, projector)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"symmetric={self.symmetric}, tolerance={self.tolerance}"


class _Projector:
    """P, S and their transposes."""

    def __init__(
        self, operator: AttentionOperator, right: Eigenpair, left: Eigenpair, tolerance: float, max_products: int
    ) -> None:
        self.operator, self.members = operator, operator.members
        self.r, self.l = right.vector.unsqueeze(-1), left.vector.unsqueeze(-1)
        overlap = self.members.sum(self.r * self.l)
        alive = overlap > torch.finfo(overlap.dtype).eps
        self.overlap = self.members.spread(torch.where(alive, overlap, 1))
        self.alive = self.members.spread(alive)
        self.value = self.members.spread(torch.where(alive, right.value.unsqueeze(-1), 1))
        self.tolerance, self.max_products = tolerance, max_products

    def project(self, x: Tensor, adjoint: bool = False) -> Tensor:
        """P x."""
        into, out = (self.r, self.l) if adjoint else (self.l, self.r)
        y = out * self.members.spread(self.members.sum(into * x)) / self.overlap
        return torch.where(self.alive, y, 0)

    def reduce(self, x: Tensor, adjoint: bool = False) -> Tensor:
        """S x, from :math:`(I - A / \\lambda + P)\\, \\lambda z = (I - P) x`."""
        product = self.operator.t_matmul if adjoint else self.operator.matmul

        def apply(z: Tensor) -> Tensor:
            moved = z - product(z) / self.value + self.project(z, adjoint)
            return torch.where(self.alive, moved, z)

        b = torch.where(self.alive, x - self.project(x, adjoint), 0)
        found = gmres(apply, b, self.members, tolerance=self.tolerance, max_products=self.max_products)
        return found.x / self.value


class _Project(torch.autograd.Function):
    """P v, with slopes for v, A S v and A P v."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, a_z: Tensor, a_y: Tensor, y: Tensor, projector: _Projector) -> Tensor:
        ctx.projector = projector
        return y.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            back, reduced = ctx.projector.project(slope, adjoint=True), ctx.projector.reduce(slope, adjoint=True)
        return once(back), once(back), once(reduced), None, None
