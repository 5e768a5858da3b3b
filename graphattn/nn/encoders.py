"""Features and encodings of tokens and edges to rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.errors import ArgumentError
from graphattn.nn.norm import make_norm

__all__ = ["LaplacianEncoder", "NodeEncoder", "RowEncoder", "WalkEncoder", "needed"]


class RowEncoder(nn.Module):
    """Ids or features to rows; the embeddings of several id columns are added.

    Args:
        width: Channels of a row.
        vocab: Number of ids, or one number for each of several columns; ``None``: ``channels`` says.
        channels: Floating features; ``None``: ``vocab`` says.
        name: Of the input, for error texts.
        xavier: Initial embeddings by Glorot & Bengio (2010), as OGB's atom and bond encoders have them; else from the
            standard normal distribution.
    """

    _sizes: Tensor
    _offsets: Tensor

    def __init__(
        self, width: int, vocab: int | list[int] | None, channels: int | None, name: str, *, xavier: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        sizes = [vocab] if isinstance(vocab, int) else vocab
        tables = [nn.Embedding(size, width) for size in sizes or ()]
        if xavier:
            for table in tables:
                nn.init.xavier_uniform_(table.weight)
        self.tables = None if sizes is None else nn.ModuleList(tables)
        sizes_of_columns = torch.tensor(sizes or [0])
        self.register_buffer("_sizes", sizes_of_columns, persistent=False)
        self.register_buffer("_offsets", sizes_of_columns.cumsum(0) - sizes_of_columns, persistent=False)
        self.linear = None if channels is None else nn.Linear(channels, width)

    def forward(self, rows: Tensor) -> Tensor:
        """``[N]``, ``[N, columns]`` or ``[N, channels]`` to ``[N, width]``."""
        if self.linear is not None:
            if not rows.is_floating_point() or rows.shape[-1] != self.linear.in_features:
                raise ArgumentError(
                    f"{self.name} must be floating [N, {self.linear.in_features}], got {rows.dtype} {list(rows.shape)}"
                )
            return self.linear(rows)
        assert self.tables is not None
        if rows.is_floating_point():
            raise ArgumentError(
                f"{self.name} must hold integer ids for a model made with a vocabulary, got {rows.dtype}"
            )
        columns = rows.unsqueeze(-1) if rows.dim() == 1 else rows
        if columns.shape[1] != len(self.tables):
            raise ArgumentError(f"{self.name} must have {len(self.tables)} id columns, got {columns.shape[1]}")
        if len(self.tables) == 1:
            return self.tables[0](columns[:, 0])
        # One lookup and one scatter of gradients for all columns. An id out of range must not read the next table.
        known = (columns >= 0) & (columns < self._sizes)
        ids = torch.where(known, columns + self._offsets, -1)
        weights: list[Any] = [table.weight for table in self.tables]
        return F.embedding(ids, torch.cat(weights)).sum(1)


class WalkEncoder(nn.Module):
    """Return probabilities of random walks to rows by a linear map (RWSE with the encoder of GPS, arXiv 2205.12454).

    Args:
        steps: Columns of the encoding (:func:`graphattn.encoding.random_walk_pe`).
        width: Channels of a row.
        norm: ``"batch"`` normalises the probabilities first, as published. Walks of an odd length return in few
            molecules: such a column has hardly any variance, and where a molecule of another split has an odd ring, its
            entry is blown up (ogbg-molfreesolv: validation RMSE 2 to 7 at best, 34 in the end, where training has
            0.6). ``"none"``: probabilities are of one scale as they are.
    """

    def __init__(self, steps: int, width: int, norm: str = "none") -> None:
        super().__init__()
        self.norm = make_norm(norm, steps)
        self.linear = nn.Linear(steps, width)

    def forward(self, walk: Tensor) -> Tensor:
        """``[N, steps]`` to ``[N, width]``."""
        return self.linear(self.norm(walk.to(self.linear.weight.dtype)))


class LaplacianEncoder(nn.Module):
    """Laplacian eigenvectors to rows that do not depend on their signs.

    .. math:: y_n = \\rho\\Big(\\sum_j \\phi(v_{nj}, \\lambda_j) + \\phi(-v_{nj}, \\lambda_j)\\Big)

    (SignNet, Lim et al., arXiv 2202.13013, eq. 4, with a sum over eigenvectors in place of their concatenation, and
    networks of each node alone.)

    Args:
        width: Channels of a row.
        hidden: Channels between.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = 2 * width if hidden is None else hidden
        self.each = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.together = nn.Linear(hidden, width)

    def forward(self, pe: Tensor, eigenvalues: Tensor | None = None) -> Tensor:
        """``[N, k]`` eigenvectors (and the eigenvalue of each, ``[N, k]``; default 0) to ``[N, width]``."""
        pe = pe.to(self.together.weight.dtype)
        values = torch.zeros_like(pe) if eigenvalues is None else eigenvalues.to(pe.dtype)
        both = torch.stack([torch.stack([pe, -pe]), values.expand(2, *pe.shape)], dim=-1)  # [2, N, k, 2]
        return self.together(self.each(both).sum(dim=(0, 2)))


class NodeEncoder(nn.Module):
    """Features of nodes beside their encodings, each embedded to channels of its own (as in GPS, arXiv 2205.12454).

    Args:
        width: Channels of a row; what the encodings leave is for the features.
        vocab: See :class:`RowEncoder`.
        channels: See :class:`RowEncoder`.
        rwse_dim: Columns of the random walk encoding; ``None``: none.
        rwse_width: Channels it is embedded to.
        rwse_norm: See :class:`WalkEncoder`.
        pe_dim: Columns of the Laplacian encoding; ``None``: none.
        pe_width: Channels it is embedded to.
        pe_encoder: ``"linear"`` or ``"sign_invariant"`` (:class:`LaplacianEncoder`).

    Raises:
        ArgumentError: If no channels are left, or there is no such encoder.
    """

    def __init__(
        self,
        width: int,
        vocab: int | list[int] | None,
        channels: int | None,
        *,
        rwse_dim: int | None = None,
        rwse_width: int = 16,
        rwse_norm: str = "none",
        pe_dim: int | None = None,
        pe_width: int = 16,
        pe_encoder: str = "linear",
    ) -> None:
        super().__init__()
        if pe_encoder not in ("linear", "sign_invariant"):
            raise ArgumentError(f"pe_encoder must be 'linear' or 'sign_invariant', got {pe_encoder!r}")
        features = width - (rwse_width if rwse_dim else 0) - (pe_width if pe_dim else 0)
        if features < 1:
            raise ArgumentError(f"width must exceed the widths of the encodings, got {width}, which leaves {features}")
        self.rwse_dim, self.pe_dim = rwse_dim, pe_dim
        self.features = RowEncoder(features, vocab, channels, "x", xavier=True)
        self.rwse = WalkEncoder(rwse_dim, rwse_width, rwse_norm) if rwse_dim else None
        self.pe: nn.Module | None = None
        if pe_dim:
            self.pe = nn.Linear(pe_dim, pe_width) if pe_encoder == "linear" else LaplacianEncoder(pe_width)

    def forward(
        self, x: Tensor, rwse: Tensor | None = None, pe: Tensor | None = None, eigenvalues: Tensor | None = None
    ) -> Tensor:
        """``[N, width]`` rows."""
        parts = [self.features(x)]
        if self.rwse is not None:
            parts.append(self.rwse(needed("rwse", rwse, x.shape[0], self.rwse_dim)))
        if self.pe is not None:
            pe = needed("pe", pe, x.shape[0], self.pe_dim).to(parts[0].dtype)
            if eigenvalues is not None:
                eigenvalues = needed("pe_eigenvalues", eigenvalues, x.shape[0], self.pe_dim)
            parts.append(self.pe(pe) if isinstance(self.pe, nn.Linear) else self.pe(pe, eigenvalues))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def needed(name: str, value: Tensor | None, rows: int, columns: int | None = None) -> Tensor:
    """An input that a model was made for, if it is there and fits.

    Args:
        name: Of the input, for error texts.
        value: The input.
        rows: One for each node, or for each edge.
        columns: How many it has; ``None``: whoever reads it checks that.

    Raises:
        ArgumentError: If it is missing, or of another shape.
    """
    if value is None:
        raise ArgumentError(f"{name} is needed by this model and was not given")
    what = "edge" if name == "edge_attr" else "node"
    if columns is not None and value.shape != (rows, columns):
        raise ArgumentError(f"{name} must be [{rows}, {columns}], a row for each {what}, got {list(value.shape)}")
    if value.shape[0] != rows:
        raise ArgumentError(f"{name} must have one row for each {what}, {rows}, got shape {list(value.shape)}")
    return value
