"""Rotary positions against complex numbers, and what they are for."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.nn import Rotary, rotate


def test_equal_to_complex_rotation() -> None:
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    positions = torch.tensor([0, 1, 7, 2, 100_000])
    found = rotate(x, *Rotary(8, 500.0)(positions, torch.float64))
    angle = positions[:, None] * 500.0 ** (-torch.arange(0, 8, 2) / 8).double()
    pair = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    torch.testing.assert_close(found, torch.cat([pair.real, pair.imag], -1), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))


def test_products_depend_on_distance_only() -> None:
    q, k, rotary = torch.randn(1, 1, 8).double(), torch.randn(1, 1, 8).double(), Rotary(8)

    def product(p: int, s: int) -> float:
        (a, b), (c, d) = (rotary(torch.tensor([place]), torch.float64) for place in (p, s))
        return float((rotate(q, a, b) * rotate(k, c, d)).sum())

    assert product(3, 10) == pytest.approx(product(1003, 1010), abs=1e-9)
    assert product(3, 10) != pytest.approx(product(3, 11), abs=1e-3)


def test_half_types_late_positions_and_errors() -> None:
    x = torch.randn(4, 2, 8)
    waves = Rotary(8)(torch.tensor([1, 5000, 100_000, 1_000_000]))
    assert waves[0].dtype == torch.float32
    exact = rotate(x.double(), *Rotary(8)(torch.tensor([1, 5000, 100_000, 1_000_000]), torch.float64))
    torch.testing.assert_close(rotate(x, *waves).double(), exact, atol=1e-5, rtol=0)
    half = rotate(x.bfloat16(), *waves)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, atol=0.03, rtol=0.02)
    with pytest.raises(ArgumentError, match="head_width must be even for rotary positions, got 7"):
        Rotary(7)
    with pytest.raises(ArgumentError, match="base must be positive, got 0"):
        Rotary(8, 0.0)
