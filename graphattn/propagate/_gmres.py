"""GMRES for many right-hand sides at once, each member, head and channel for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn.graph.members import Members

__all__ = ["Solution", "gmres"]


class Solution(NamedTuple):
    """What :func:`gmres` found."""

    x: Tensor
    products: int
    residual: float
    """The largest :math:`\\lVert b - M x \\rVert / (\\lVert b \\rVert + \\lVert x \\rVert)`."""


@torch.no_grad()
def gmres(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    members: Members,
    *,
    tolerance: float,
    max_products: int,
    restart: int = 12,
) -> Solution:
    """Solve :math:`M x = b` for a matrix that is block-diagonal over members and heads.

    Saad & Schultz, "GMRES" (SIAM J. Sci. Stat. Comput. 7, 1986), restarted. For :math:`M = I - \\gamma A`, a cycle of m
    steps reduces the residual at least as much as m terms of the Neumann series do, so it converges wherever
    :math:`\\lVert (\\gamma A)^m \\rVert_2 < 1`. The only memory is ``restart + 5`` tensors of the size of ``b``. The
    host waits for the device once in each step.

    Args:
        apply: The product with M, a new tensor each time.
        b: ``[N, H, D]``.
        members: Which rows belong together.
        tolerance: On the relative residual, see :class:`Solution`.
        max_products: Give up after so many products with M.
        restart: Steps in a cycle.
    """
    tiny, eps = torch.finfo(b.dtype).tiny, torch.finfo(b.dtype).eps
    room = torch.empty_like(b)  # the host would ask the system for fresh memory at every product otherwise

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return members.sum(torch.mul(x, y, out=room))

    norm_b = dot(b, b).sqrt()
    x, r, products = torch.zeros_like(b), b, 0
    while True:
        beta, size = dot(r, r).sqrt(), norm_b + dot(x, x).sqrt()
        residual = _largest(beta / size.clamp(min=tiny))
        if not tolerance < residual < float("inf") or products >= max_products:
            return Solution(x, products, residual)
        basis = [r / members.spread(beta.clamp(min=tiny))]
        rotations: list[tuple[Tensor, Tensor]] = []
        columns: list[list[Tensor]] = []
        right = [beta]
        for _ in range(min(restart, max_products - products)):
            w = apply(basis[-1])
            products += 1
            column = []
            for v in basis:  # modified Gram-Schmidt
                column.append(dot(w, v))
                w.addcmul_(members.spread(column[-1]), v, value=-1)
            rest = dot(w, w).sqrt()
            rest = torch.where(rest > 8 * eps, rest, 0)  # a basis that is complete: what is left is rounding
            for n, (c, s) in enumerate(rotations):
                column[n], column[n + 1] = c * column[n] + s * column[n + 1], c * column[n + 1] - s * column[n]
            diagonal = torch.hypot(column[-1], rest)
            safe = diagonal.clamp(min=tiny)
            c, s = torch.where(diagonal > 0, column[-1] / safe, 1), rest / safe
            rotations.append((c, s))
            column[-1] = diagonal
            columns.append(column)
            right[-1], last = c * right[-1], -s * right[-1]
            right.append(last)
            if _largest(last.abs() / size.clamp(min=tiny)) <= tolerance:
                break
            basis.append(w.mul_(members.spread(torch.where(rest > 0, 1 / rest.clamp(min=tiny), 0))))
        for n, y in enumerate(_back_substitute(columns, right)):
            x.addcmul_(members.spread(y), basis[n])
        r = b - apply(x)
        products += 1


def _back_substitute(columns: list[list[Tensor]], right: list[Tensor]) -> list[Tensor]:
    """The coefficients of the basis: an upper triangular system, given by columns; 0 where the diagonal is 0."""
    y = [torch.zeros_like(right[0])] * len(columns)
    for row in reversed(range(len(columns))):
        value = right[row]
        for n in range(row + 1, len(columns)):
            value = value - columns[n][row] * y[n]
        diagonal = columns[row][row]
        y[row] = torch.where(diagonal > 0, value / torch.where(diagonal > 0, diagonal, 1), 0)
    return y


def _largest(x: Tensor) -> float:
    return float(x.max()) if x.numel() else 0.0
