"""Normalisation of rows, by name."""

from __future__ import annotations

from torch import Tensor, nn

from graphattn.errors import ArgumentError

__all__ = ["BatchNorm", "make_norm"]


class BatchNorm(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` with an error that says what to do about a mini-batch of one row.

    Raises:
        ArgumentError: In training, for a single row: its variance is not defined.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[N, width]``."""
        if self.training and input.shape[0] == 1:
            raise ArgumentError(
                "a batch norm in training needs more than one row, got a mini-batch with one token (the last one of an "
                "epoch, maybe); use drop_last: true in the data, another batch_size, or norm: layer"
            )
        return super().forward(input)


_NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "layer": nn.LayerNorm, "none": nn.Identity}


def make_norm(name: str, width: int) -> nn.Module:
    """A module that normalises rows ``[N, width]``.

    Args:
        name: ``"batch"`` (over all rows of the mini-batch), ``"layer"`` (each row by itself) or ``"none"``.
        width: Channels.

    Raises:
        ArgumentError: If there is no norm of this name.
    """
    if name not in _NORMS:
        raise ArgumentError(f"norm must be one of {sorted(_NORMS)}, got {name!r}")
    return _NORMS[name](width)
