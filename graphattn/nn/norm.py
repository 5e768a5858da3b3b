"""Normalisation of rows, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["BatchNorm", "make_norm", "real_rows"]

_REAL: dict[int, Tensor] = {}


@contextmanager
def real_rows(counts: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside, batch norms count only the first rows of inputs that were filled up to one size.

    Args:
        counts: For each number of rows how many of them are real, an integer scalar on the device.
    """
    before = dict(_REAL)
    _REAL.update(counts)
    try:
        yield
    finally:
        _REAL.clear()
        _REAL.update(before)


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
        if _REAL and self.training and input.shape[0] in _REAL:  # in this order: compiled code must not ask for sizes
            return self._over_real_rows(input, _REAL[input.shape[0]])
        return super().forward(input)

    def _over_real_rows(self, input: Tensor, count: Tensor) -> Tensor:
        """The same with statistics of the first ``count`` rows, whose number the host does not know."""
        out, mean, variance = _RealRowsNorm.apply(input, self.weight, self.bias, count, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                unbiased = variance * (count / (count - 1).clamp(min=1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return out


class _RealRowsNorm(torch.autograd.Function):
    """Rows normalised by mean and variance of the first ``count`` of them; the others come out as the bias.

    By hand, because the operations that autograd would record are several times as many, and each is a launch.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, count: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = input.to(accumulate_dtype(input.dtype))
        real = (torch.arange(rows.shape[0], device=rows.device) < count).unsqueeze(1)
        mean = rows.where(real, 0.0).sum(0) / count
        centred = (rows - mean).where(real, 0.0)
        variance = centred.square().sum(0) / count
        inverse = (variance + eps).rsqrt()
        slope = inverse if weight is None else inverse * weight.to(rows.dtype)
        out = centred * slope if bias is None else torch.addcmul(bias.to(rows.dtype), centred, slope)
        ctx.save_for_backward(centred, inverse, slope, real, count)
        ctx.mark_non_differentiable(mean, variance)
        return out.to(input.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        centred, inverse, slope, real, count = ctx.saved_tensors
        gradient = gradients[0].to(centred.dtype)
        # What was filled up reaches no loss: its gradients are 0, and sums over all rows are sums over the real ones.
        for_bias = gradient.sum(0)
        for_weight = (gradient * centred).sum(0) * inverse
        by_rows = torch.addcmul(for_bias, centred, for_weight * inverse) / count
        for_input = ((gradient - by_rows) * slope).where(real, 0.0).to(gradients[0].dtype)
        wanted = ctx.needs_input_grad
        return for_input, for_weight if wanted[1] else None, for_bias if wanted[2] else None, None, None


_NORMS: dict[str, type[nn.Module]] = {
    "batch": BatchNorm,
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "none": nn.Identity,
}


def make_norm(name: str, width: int) -> nn.Module:
    """A module that normalises rows ``[N, width]``.

    Args:
        name: ``"batch"`` (over all rows of the mini-batch), ``"layer"`` (each row by itself), ``"rms"`` (likewise, by
            its root mean square alone: Zhang & Sennrich, arXiv 1910.07467) or ``"none"``.
        width: Channels.

    Raises:
        ArgumentError: If there is no norm of this name.
    """
    if name not in _NORMS:
        raise ArgumentError(f"norm must be one of {sorted(_NORMS)}, got {name!r}")
    return _NORMS[name](width)
