"""What an iterative propagator says of its last run."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SolveReport"]


@dataclass(frozen=True)
class SolveReport:
    """How the last call of a propagator went: ``propagator.report``, and ``propagator.adjoint_report`` for the last
    backward pass."""

    method: str
    """``"dense"`` (LU of each member), ``"gmres"``, ``"series"`` or ``"power"``."""
    products: int
    """Products with the attention matrix, or its transpose."""
    residual: float
    """The largest relative residual of a member, head and channel."""
    tolerance: float
    """What was asked for."""
    radius: float | None = None
    """Spectral radius of what is summed, discount included: bounded from above by norms, or, where these are not below
    1, estimated by power steps. ``None``: not looked at."""

    @property
    def converged(self) -> bool:
        """Whether the tolerance was reached."""
        return self.residual <= self.tolerance
