"""Figures of segmentation as ``torchmetrics`` modules that accumulate on the device; all are fractions."""

from graphattn.training.segmentation_metrics.instances import InstanceAP
from graphattn.training.segmentation_metrics.saliency import EMeasure, FMeasure, MapError, SMeasure
from graphattn.training.segmentation_metrics.structure import BettiError, BoundaryF

__all__ = ["BettiError", "BoundaryF", "EMeasure", "FMeasure", "InstanceAP", "MapError", "SMeasure"]
