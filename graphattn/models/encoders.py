"""How networks for graphs embed nodes, edges and positions: what their arguments must be, and what is made of them."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.nn import POOLS, RowEncoder
from graphattn.nn.encoders import needed

__all__ = ["add_encoding", "check_choices", "edge_encoder", "edge_rows"]


def check_choices(in_vocab: int | list[int] | None, in_channels: int | None, readout: str) -> None:
    """Raise an :class:`ArgumentError` unless nodes are given either by ids or by features, and there is the readout."""
    if (in_vocab is None) == (in_channels is None):
        raise ArgumentError(f"give either in_vocab or in_channels, got {in_vocab} and {in_channels}")
    if readout != "node" and readout not in POOLS:
        raise ArgumentError(f"readout must be 'node' or one of {POOLS}, got {readout!r}")


def edge_encoder(
    width: int, edge_vocab: int | list[int] | None, edge_channels: int | None, *, xavier: bool = False
) -> RowEncoder | None:
    """The encoder of ``edge_attr``; ``None`` for a network without edge rows.

    Args:
        width: Channels of an edge row.
        edge_vocab: Number of edge types, or one number for each of several id columns.
        edge_channels: Edge features. Give at most one of the two.
        xavier: See :class:`~graphattn.nn.RowEncoder`.

    Raises:
        ArgumentError: If both are given.
    """
    if edge_vocab is not None and edge_channels is not None:
        raise ArgumentError(f"give at most one of edge_vocab and edge_channels, got {edge_vocab}, {edge_channels}")
    if edge_vocab is None and edge_channels is None:
        return None
    return RowEncoder(width, edge_vocab, edge_channels, "edge_attr", xavier=xavier)


def edge_rows(encoder: RowEncoder | None, edge_attr: Tensor | None, num_edges: int) -> Tensor | None:
    """Rows ``[E, width]``, ``None`` without an encoder.

    Raises:
        ArgumentError: If there is no row for each edge.
    """
    return None if encoder is None else encoder(needed("edge_attr", edge_attr, num_edges))


def add_encoding(h: Tensor, encoder: nn.Linear | None, pe: Tensor | None) -> Tensor:
    """``h [N, width]`` with the embedded positional encoding added, where there is an encoder.

    Raises:
        ArgumentError: If the encoding is missing, or of another shape.
    """
    if encoder is None:
        return h
    pe = needed("pe", pe, h.shape[0], encoder.in_features)
    return h + encoder(pe.to(encoder.weight.dtype))
