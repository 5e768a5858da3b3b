"""Rotary positions (Su et al., "RoFormer", arXiv 2104.09864, 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["Rotary", "rotate"]


class Rotary(nn.Module):
    """The angles by which queries and keys are turned, so that their product depends on the distance of positions only.

    .. math::
        \\theta_{pj} = p\\, b^{-2j / D}, \\qquad
        (x_j, x_{j + D/2}) \\mapsto (x_j \\cos\\theta - x_{j + D/2} \\sin\\theta,\\;
        x_{j + D/2} \\cos\\theta + x_j \\sin\\theta)

    (section 3.2.2, with channel j paired with j + D/2 as in the released models of LLaMA and GPT-NeoX, where the paper
    pairs 2j with 2j + 1.)

    Args:
        head_width: D, even.
        base: b.

    Raises:
        ArgumentError: If ``head_width`` is odd or ``base`` not positive.
    """

    def __init__(self, head_width: int, base: float = 10000.0) -> None:
        super().__init__()
        if head_width < 2 or head_width % 2:
            raise ArgumentError(f"head_width must be even for rotary positions, got {head_width}")
        if not base > 0:
            raise ArgumentError(f"base must be positive, got {base}")
        self.head_width, self.base = head_width, base

    def forward(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angles ``[..., N, 1, D / 2]`` at positions ``[..., N]`` (integers, or not), in
        float32 (float64 on request): an angle of a late position has no place in a half type."""
        # Products in float64: in float32, angles at position 100,000 are wrong in the third digit.
        exact = torch.float32 if positions.device.type == "mps" else torch.float64
        steps = torch.arange(0, self.head_width, 2, device=positions.device, dtype=exact)
        angle = positions.to(exact)[..., None, None] * self.base ** (-steps / self.head_width)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"head_width={self.head_width}, base={self.base:g}"


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rows ``[..., N, H, D]`` turned by the angles of :class:`Rotary`; computed in float32 at least."""
    first, second = x.to(accumulate_dtype(x.dtype)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
