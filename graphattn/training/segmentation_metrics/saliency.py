"""Figures of saliency maps, equal to those of PySODMetrics (``py_sod_metrics`` 1.6.2), for whole batches.

All take maps in 0..1; ``normalize=True`` stretches each to this range, as evaluation codes of the field do with the
pictures that they read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.training.segmentation_metrics.base import ImageMean, check_maps

__all__ = ["EMeasure", "FMeasure", "MapError", "SMeasure"]

_EPS = 2.0**-52  # of float64, as in the MATLAB codes


class _Saliency(ImageMean):
    def __init__(self, points: int = 1, how: str = "mean", *, normalize: bool = False) -> None:
        super().__init__(points, how)
        self.normalize = normalize

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: ``[B, H, W]``, values in 0..1.
            mask: ``[B, H, W]``, 0 and 1.

        Raises:
            ArgumentError: If shapes do not fit.
        """
        prediction, mask = check_maps(prediction, mask)
        if self.normalize:
            low, high = prediction.amin((1, 2), keepdim=True), prediction.amax((1, 2), keepdim=True)
            spread = high > low
            stretched = (prediction - low) / torch.where(spread, high - low, 1.0)
            prediction = torch.where(spread, stretched, prediction)
        self.add(self.figures(prediction, mask))

    def figures(self, prediction: Tensor, mask: Tensor) -> Tensor:
        """``[B]`` or ``[B, points]``."""
        raise NotImplementedError


class MapError(_Saliency):
    """Mean absolute error of the map, averaged over pixels, then over images (MAE)."""

    higher_is_better = False

    def figures(self, prediction: Tensor, mask: Tensor) -> Tensor:
        return (prediction.double() - mask.double()).abs().mean((1, 2))


class _Thresholded(_Saliency):
    """A figure of the map at a threshold: each of 256, or twice the map's mean."""

    def __init__(self, how: str, *, normalize: bool = False) -> None:
        if how not in ("max", "mean", "adaptive"):
            raise ArgumentError(f"how must be 'max', 'mean' or 'adaptive', got {how!r}")
        super().__init__(1 if how == "adaptive" else 256, how, normalize=normalize)

    def figures(self, prediction: Tensor, mask: Tensor) -> Tensor:
        size = mask.shape[1] * mask.shape[2]
        truth = mask.sum((1, 2), dtype=torch.float64)[:, None]
        if self.how == "adaptive":
            threshold = (2 * prediction.mean((1, 2), dtype=torch.float64)).clamp(max=1.0)
            above = prediction.double() >= threshold[:, None, None]
            hits = (above & mask).sum((1, 2), dtype=torch.float64)[:, None]
            return self.at(hits, above.sum((1, 2), dtype=torch.float64)[:, None], truth, size)
        hits, above = _counts(prediction, mask)
        return self.at(hits, above, truth, size)

    def at(self, hits: Tensor, above: Tensor, truth: Tensor, size: int) -> Tensor:
        """From the pixels above a threshold that are in the mask, all above it, those of the mask, and all."""
        raise NotImplementedError


class FMeasure(_Thresholded):
    """:math:`F_\\beta = (1 + \\beta^2) P R / (\\beta^2 P + R)`, with the published :math:`\\beta^2 = 0.3`.

    Achanta et al. (CVPR 2009). The curve is averaged over images before its maximum is taken; an image without a hit
    counts 0.

    Args:
        how: ``"max"`` or ``"mean"`` over 256 thresholds, or ``"adaptive"``: at twice the mean of the map, at most 1.
        beta2: :math:`\\beta^2`.
        normalize: Stretch each map to 0..1 first.
    """

    def __init__(self, how: str = "max", *, beta2: float = 0.3, normalize: bool = False) -> None:
        super().__init__(how, normalize=normalize)
        self.beta2 = beta2

    def at(self, hits: Tensor, above: Tensor, truth: Tensor, size: int) -> Tensor:
        precision, recall = hits / above.clamp(min=1), hits / truth.clamp(min=1)
        both = self.beta2 * precision + recall
        return (1 + self.beta2) * precision * recall / torch.where(hits > 0, both, 1.0)


class EMeasure(_Thresholded):
    """Enhanced alignment of the two masks' deviations from their means (Fan et al., IJCAI 2018).

    Args:
        how: ``"max"`` or ``"mean"`` over 256 thresholds, or ``"adaptive"``: at twice the mean of the map, at most 1.
        normalize: Stretch each map to 0..1 first.
    """

    def __init__(self, how: str = "adaptive", *, normalize: bool = False) -> None:
        super().__init__(how, normalize=normalize)

    def at(self, hits: Tensor, above: Tensor, truth: Tensor, size: int) -> Tensor:
        p, t = above / size, truth / size
        total = torch.zeros_like(hits)
        # Pixels of four kinds: (in the prediction, in the truth), with their number.
        kinds = (
            (1 - p, 1 - t, hits),
            (1 - p, -t, above - hits),
            (-p, 1 - t, truth - hits),
            (-p, -t, size - above - truth + hits),
        )
        for a, b, number in kinds:
            aligned = 2 * a * b / (a.square() + b.square() + _EPS)
            total += (aligned + 1).square() / 4 * number
        total = torch.where(truth == 0, size - above, torch.where(truth == size, above, total))
        return total / (size - 1 + _EPS)


class SMeasure(_Saliency):
    """Structure of objects and of four regions about the centre of the mask (Fan et al., "Structure-measure", ICCV
    2017).

    Where a region is empty (a mask in the last row or column only), it counts nothing; PySODMetrics gives NaN there.

    Args:
        alpha: Weight of the object score; that of the region score is the rest.
        normalize: Stretch each map to 0..1 first.
    """

    def __init__(self, alpha: float = 0.5, *, normalize: bool = False) -> None:
        super().__init__(normalize=normalize)
        self.alpha = alpha

    def figures(self, prediction: Tensor, mask: Tensor) -> Tensor:
        p, m = prediction.double(), mask.double()
        share, mean = m.mean((1, 2)), p.mean((1, 2))
        objects = _object_score(p, m) * share + _object_score(1 - p, 1 - m) * (1 - share)
        mixed = (self.alpha * objects + (1 - self.alpha) * _region_score(p, m)).clamp(min=0)
        return torch.where(share == 0, 1 - mean, torch.where(share == 1, mean, mixed))


def _counts(prediction: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How many pixels of the mask, and of all, reach 255, 254, ..., 0: float64 ``[B, 256]`` twice."""
    batch = prediction.shape[0]
    level = (prediction * 255).clamp(0, 255).long()  # rounded down, in the dtype of the map
    bins = level + 256 * mask + 512 * torch.arange(batch, device=mask.device)[:, None, None]
    histogram = torch.zeros(batch * 512, dtype=torch.int64, device=mask.device)
    histogram.scatter_add_(0, bins.flatten(), torch.ones_like(histogram[:1]).expand(bins.numel()))
    outside, inside = histogram.view(batch, 2, 256).flip(2).cumsum(2).double().unbind(1)
    return inside, inside + outside


def _object_score(x: Tensor, m: Tensor) -> Tensor:
    count = m.sum((1, 2))
    mean = (x * m).sum((1, 2)) / count.clamp(min=1)
    squares = ((x - mean[:, None, None]).square() * m).sum((1, 2))
    deviation = (squares / (count - 1).clamp(min=1)).sqrt()
    return 2 * mean / (mean.square() + 1 + deviation + _EPS)


def _region_score(p: Tensor, m: Tensor) -> Tensor:
    """SSIM of four quadrants about the centre of the mask, weighted by their area."""
    _, height, width = m.shape
    row, column = (torch.arange(n, device=m.device, dtype=m.dtype) for n in (height, width))
    count = m.sum((1, 2)).clamp(min=1)
    below = row >= ((m.sum(2) * row).sum(1) / count).round()[:, None] + 1
    after = column >= ((m.sum(1) * column).sum(1) / count).round()[:, None] + 1
    place = 2 * below.long()[:, :, None] + after.long()[:, None, :]  # the quadrant of each pixel
    rows, columns = (torch.stack([~side, side], 1).to(m.dtype) for side in (below, after))

    def total(x: Tensor) -> Tensor:
        return torch.einsum("brh,bhw,bcw->brc", rows, x, columns).flatten(1)

    def centred(x: Tensor, mean: Tensor) -> Tensor:
        return x - mean.gather(1, place.flatten(1)).view_as(x)

    area = total(torch.ones_like(m))
    x, y = (total(t) / area.clamp(min=1) for t in (p, m))
    p, m = centred(p, x), centred(m, y)
    scale = area - 1 + _EPS
    between = total(p * m) / scale
    alpha = 4 * x * y * between
    beta = (x.square() + y.square()) * (total(p.square()) + total(m.square())) / scale
    score = torch.where(alpha != 0, alpha / (beta + _EPS), (beta == 0).to(m.dtype))
    return (score.where(area > 0, 0.0) * area / (height * width)).sum(1)
