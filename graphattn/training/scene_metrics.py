"""Which figures a segmentation is judged by, and what each of them looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from graphattn.models.image import Reading
from graphattn.training.segmentation_metrics import (
    BettiError,
    BoundaryF,
    EMeasure,
    FMeasure,
    InstanceAP,
    MapError,
    SMeasure,
)

__all__ = ["SCENE_METRICS", "InstanceFigure", "TargetKind", "names_for", "scene_metrics", "update_metric"]

TargetKind: TypeAlias = Literal["binary", "instances", "classes"]

BOUNDARY = 2  # pixels that a boundary may lie off


class InstanceFigure(InstanceAP):
    """One of the figures of :class:`~graphattn.training.segmentation_metrics.InstanceAP`.

    Args:
        figure: ``"ap"``, or ``"ap50"``, ``"ap70"``, ``"threat50"``, ``"threat70"``.
    """

    def __init__(self, figure: str) -> None:
        super().__init__()
        self.figure = figure

    def compute(self) -> Any:
        """The figure over all images since the last reset."""
        return super().compute()[self.figure]


class _Judge(NamedTuple):
    make: Callable[..., Metric]  # of the number of classes
    looks_at: Literal["saliency", "mask", "instances"]
    kinds: tuple[TargetKind, ...]
    fast: bool = False  # fast enough for every validation


def _plain(make: Callable[[], Metric]) -> Callable[..., Metric]:
    return lambda num_classes: make()


_MASKS: tuple[TargetKind, ...] = ("binary", "instances")
SCENE_METRICS: dict[str, _Judge] = {
    "max_f": _Judge(_plain(FMeasure), "saliency", _MASKS, fast=True),
    "adaptive_f": _Judge(_plain(partial(FMeasure, "adaptive")), "saliency", _MASKS),
    "mae": _Judge(_plain(MapError), "saliency", _MASKS, fast=True),
    "s_measure": _Judge(_plain(SMeasure), "saliency", _MASKS),
    "e_measure": _Judge(_plain(EMeasure), "saliency", _MASKS),
    "boundary_f": _Judge(_plain(partial(BoundaryF, BOUNDARY)), "mask", _MASKS),
    "betti_error": _Judge(_plain(BettiError), "mask", _MASKS),
    "ap": _Judge(_plain(partial(InstanceFigure, "ap")), "instances", ("instances",)),
    "ap50": _Judge(_plain(partial(InstanceFigure, "ap50")), "instances", ("instances",)),
    "ap70": _Judge(_plain(partial(InstanceFigure, "ap70")), "instances", ("instances",)),
    "mean_iou": _Judge(partial(MulticlassJaccardIndex, ignore_index=-1), "mask", ("classes",), fast=True),
}
"""All fractions. ``boundary_f`` (2 pixels of tolerance) and ``betti_error`` look at the mask that the head's own rule
gives, the instance figures at its components, the others at the saliency."""


def names_for(stage: str, kind: TargetKind) -> list[str]:
    """The metrics of a stage: none in training, the fast ones in validation, all in the test."""
    return [
        name
        for name, judge in SCENE_METRICS.items()
        if kind in judge.kinds and (stage == "test" or (stage == "val" and judge.fast))
    ]


def scene_metrics(stage: str, kind: TargetKind, num_classes: int = 1) -> dict[str, Metric]:
    """New metrics of a stage, by name."""
    return {name: SCENE_METRICS[name].make(num_classes=num_classes) for name in names_for(stage, kind)}


def update_metric(
    name: str, metric: Metric, reading: Reading, target: Tensor, sizes: Sequence[tuple[int, int]] | None
) -> None:
    """Show a batch to a metric; where photographs of several sizes are padded, each on its own, without the padding.

    Args:
        name: Of the metric.
        metric: Itself.
        reading: What the network says.
        target: int64 ``[B, H, W]``.
        sizes: How much of each is photograph; ``None``: all.
    """
    judge = SCENE_METRICS[name]
    said = [getattr(reading, judge.looks_at)]
    if judge.looks_at == "instances":
        true = target.clamp(min=0)
        said.append(reading.saliency)
    elif "classes" in judge.kinds:
        true = target
    else:
        true = target.clamp(0, 1)
    whole = tuple(target.shape[-2:])
    if sizes is None or all(tuple(size) == whole for size in sizes):
        metric.update(said[0], true, *said[1:])
        return
    for number, (height, width) in enumerate(sizes):
        part = (slice(number, number + 1), slice(height), slice(width))
        metric.update(said[0][part], true[part], *(other[part] for other in said[1:]))
