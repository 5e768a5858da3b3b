"""Encoders of features and encodings."""

from __future__ import annotations

import pytest
import torch

from graphattn.errors import ArgumentError
from graphattn.nn import LaplacianEncoder, NodeEncoder, RowEncoder, WalkEncoder


def test_id_columns_are_summed_embeddings() -> None:
    """As in OGB's atom encoder, with its initial distribution (Glorot & Bengio)."""
    sizes = [119, 5, 12, 12, 10, 6, 6, 2, 2]
    encoder = RowEncoder(16, sizes, None, "x", xavier=True)
    for table, size in zip(encoder.tables, sizes, strict=True):
        bound = (6 / (size + 16)) ** 0.5
        assert table.weight.shape == (size, 16) and 0.8 * bound < table.weight.abs().max() <= bound
    x = torch.stack([torch.randint(size, (20,)) for size in sizes], dim=1)
    by_hand = [sum(table.weight[i] for table, i in zip(encoder.tables, row, strict=True)) for row in x.tolist()]
    torch.testing.assert_close(encoder(x), torch.stack(by_hand))


def test_node_encoder_sets_its_parts_side_by_side() -> None:
    encoder = NodeEncoder(12, None, 3, rwse_dim=4, rwse_width=5, pe_dim=2, pe_width=3)
    x, rwse, pe = torch.randn(7, 3), torch.rand(7, 4), torch.randn(7, 2)
    rows = encoder(x, rwse, pe)
    assert rows.shape == (7, 12)
    expected = [encoder.features.linear(x), encoder.rwse(rwse), encoder.pe(pe)]
    torch.testing.assert_close(rows, torch.cat(expected, 1))
    assert [part.shape[1] for part in expected] == [4, 5, 3]


def test_a_rare_ring_is_not_blown_up() -> None:
    """A column of walks that hardly ever return, and a graph of another split in which one does."""
    seen = torch.rand(64, 2)
    seen[:, 1] = 0.0
    rare = torch.tensor([[0.5, 0.25]])
    shifts = {}
    for norm in ("none", "batch"):
        encoder = WalkEncoder(2, 8, norm)
        for _ in range(100):
            encoder(seen)
        encoder.eval()
        shifts[norm] = (encoder(rare) - encoder(torch.tensor([[0.5, 0.0]]))).norm()
    assert shifts["none"] < 0.5 < 5 < shifts["batch"]


def test_walk_encoder_normalises_columns_where_asked() -> None:
    encoder = WalkEncoder(3, 2, "batch")
    walk = torch.rand(50, 3)
    scaled = walk * torch.tensor([1.0, 10.0, 0.1]) + 5
    torch.testing.assert_close(encoder(scaled), encoder(walk), rtol=1e-2, atol=1e-2)


def test_laplacian_encoder_ignores_signs_and_order_of_columns() -> None:
    encoder = LaplacianEncoder(4).double()
    pe, values = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64)
    out = encoder(pe, values)
    torch.testing.assert_close(encoder(pe * torch.tensor([1, -1, 1, -1, -1]), values), out)
    order = torch.randperm(5)
    torch.testing.assert_close(encoder(pe[:, order], values[:, order]), out)
    assert not torch.allclose(encoder(pe[:, order], values), out)
    assert not torch.allclose(encoder(pe.abs() + 1, values), out)


def test_errors() -> None:
    encoder = NodeEncoder(12, None, 3, rwse_dim=4, rwse_width=5)
    with pytest.raises(ArgumentError, match="rwse is needed"):
        encoder(torch.zeros(2, 3))
    with pytest.raises(ArgumentError, match="rwse must be \\[2, 4\\].*got \\[3, 4\\]"):
        encoder(torch.zeros(2, 3), torch.zeros(3, 4))
    with pytest.raises(ArgumentError, match="width must exceed"):
        NodeEncoder(5, None, 3, rwse_dim=4, rwse_width=5)
    encoder = NodeEncoder(12, None, 3, pe_dim=4, pe_width=5, pe_encoder="sign_invariant")
    with pytest.raises(ArgumentError, match="pe_eigenvalues must be \\[2, 4\\].*got \\[8\\]"):
        encoder(torch.zeros(2, 3), None, torch.zeros(2, 4), torch.zeros(8))
