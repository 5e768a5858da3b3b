"""Photographs with a label for each pixel."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ConfigError
from graphattn.mechanisms.connectivity import ConnectivityLoss, class_labels, dice_loss, instance_labels
from graphattn.models.image import Reading, read_logits
from graphattn.models.image.heads import num_logits
from graphattn.training.scene_metrics import TargetKind, names_for, scene_metrics, update_metric
from graphattn.training.task import GraphTask

__all__ = ["Segmentation", "not_a_segmentation"]

FAINT = -30.0  # a logit that says no: what lies beyond a photograph then adds nothing to a loss


class Segmentation(GraphTask):
    """A label for each pixel, from a binary, a connectivity or an instance head. A batch is
    ``{"x": float [B, 3, H, W], "y": int64 [B, H, W]}`` (:class:`~graphattn.training.SegmentationDataModule`): 0 and 1,
    instance numbers, or classes; -1 is left out.

    Losses are means over pixels and channels, where the paper has sums: the learning rate then does not depend on the
    size of the photographs.

    Args:
        model: Called with the photographs; returns logits as :class:`graphattn.models.image.ConnNet`. Another network
            says by its attributes ``head``, ``num_classes`` and ``neighbours`` what its channels are, or is taken as
            binary.
        loss: ``"bce"``: binary cross-entropy of the cube (ConnNet), or of the mask for a binary head; cross-entropy for
            a binary head of several classes. ``"biconnet"``, ``"dconnnet"``: also of votes and saliency, Dice and edges
            (:class:`graphattn.mechanisms.connectivity.ConnectivityLoss`), for a connectivity or instance head.
            ``"bce_dice"``: with Dice, for a binary head of one class.
        labels: What masks hold: ``"binary"``, ``"instances"`` (an instance AP is then among the metrics of the test) or
            ``"classes"``; ``None``: what the head suggests.
        metric: The metric of the validation that chooses the best checkpoint; ``None``: the first.
        at: Threshold of probabilities in evaluation.
        min_pixels: Smaller components are no instances.
        **kwargs: ``optimizer``, ``lr_scheduler``, ``train_transform``, ``stop_lr``, ``capture`` of
            :class:`~graphattn.training.GraphTask`.

    Raises:
        ArgumentError: If loss, labels or metric do not fit the head.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Literal["bce", "bce_dice", "biconnet", "dconnnet"] = "bce",
        labels: Literal["binary", "instances", "classes"] | None = None,
        metric: str | None = None,
        at: float = 0.5,
        min_pixels: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.head: str = getattr(model, "head", "binary")
        self.num_classes: int = getattr(model, "num_classes", 1)
        self.neighbours: int = getattr(model, "neighbours", 8)
        fitting = (
            ("bce", "biconnet", "dconnnet")
            if self.head != "binary"
            else ("bce", "bce_dice")
            if self.num_classes == 1
            else ("bce",)
        )
        if loss not in fitting:
            raise ArgumentError(f"loss must be one of {fitting} for head {self.head!r}, got {loss!r}")
        self.kind, self.at, self.min_pixels = loss, at, min_pixels
        self.cube_loss = ConnectivityLoss("connnet" if loss.startswith("bce") else loss)
        suggested: TargetKind = "instances" if self.head == "instances" else "binary"
        self.labels: TargetKind = labels or ("classes" if self.num_classes > 1 else suggested)
        if (self.labels == "classes") != (self.num_classes > 1) or (suggested == "instances" != self.labels):
            raise ArgumentError(
                f"labels {self.labels!r} do not fit head {self.head!r} with num_classes={self.num_classes}"
            )
        known = names_for("val", self.labels)
        if metric is not None and metric not in known:
            raise ArgumentError(f"metric of Segmentation must be one of {tuple(known)}, got {metric!r}")
        self.add_metrics(metric or known[0], "max", {})
        for stage in ("val", "test"):
            self.add_module(f"{stage}_metrics", nn.ModuleDict(scene_metrics(stage, self.labels, self.num_classes)))
        chosen: Any = self.get_submodule("val_metrics").get_submodule(self.metric)
        self.mode = "max" if chosen.higher_is_better else "min"

    def forward(self, batch: Any) -> Tensor:
        """The logits of a batch."""
        if not isinstance(batch, dict) or not {"x", "y"} <= set(batch) or batch["y"].dim() != 3:
            got = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ConfigError(f"Segmentation needs batches with x and y [B, H, W] (SegmentationDataModule), got {got}")
        return self.model(batch["x"])

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """All pixels; those without a label say no."""
        channels, target = num_logits(self.head, self.num_classes, self.neighbours), batch["y"]
        if output.shape != (target.shape[0], channels, *target.shape[1:]):
            wanted = (target.shape[0], channels, *target.shape[1:])
            raise ConfigError(f"the model must return logits {wanted}, got {tuple(output.shape)}; check its head")
        return output, target

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean over labelled pixels and channels."""
        labelled = target >= 0
        if self.head == "binary" and self.num_classes > 1:
            total = F.cross_entropy(prediction, target, ignore_index=-1, reduction="sum")
            return total / labelled.sum().clamp(min=1)  # a crop may have no labelled pixel
        logits = prediction.masked_fill(~labelled.unsqueeze(1), FAINT)
        part = labelled.float().mean().clamp(min=1e-6)  # a mean over all pixels becomes one over the labelled ones
        if self.head == "binary":
            mask = (target > 0).to(logits.dtype).unsqueeze(1)
            entropy = F.binary_cross_entropy_with_logits(logits, mask) / part
            return entropy + dice_loss(logits.sigmoid(), mask) if self.kind == "bce_dice" else entropy
        if self.num_classes > 1:
            cubes = class_labels(target, self.num_classes, self.neighbours, validate=False)
            masks = torch.stack([target == number for number in range(self.num_classes)], 1)
            return self.cube_loss(logits.unflatten(1, cubes.shape[1:3]), masks, cubes, part)
        known = target.clamp(min=0)
        cube = instance_labels(known if self.head == "instances" else known.clamp(max=1), self.neighbours)
        return self.cube_loss(logits, known, cube, part)

    def read(self, logits: Tensor) -> Reading:
        """Masks, saliency and instances of logits."""
        shared: dict[str, Any] = {"at": self.at, "min_pixels": self.min_pixels}
        return read_logits(logits, self.head, self.num_classes, self.neighbours, **shared)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The saliency of a batch, float32 on the host."""
        return self.read(self(batch).float()).saliency.cpu()

    def _step(self, batch: Any, stage: str) -> Tensor:
        if stage == "train":
            return super()._step(batch, stage)
        loss, prediction, target = self.compute(batch, stage)
        assert prediction is not None
        self._log_loss(stage, loss, target)
        reading = self.read(prediction.detach())
        shared: dict[str, Any] = {"batch_size": target.shape[0], "on_step": False, "on_epoch": True}
        for name, metric in self.get_submodule(f"{stage}_metrics").items():
            update_metric(name, metric, reading, target, batch.get("size"))
            self.log(f"{stage}/{name}", metric, prog_bar=stage == "val" and name == self.metric, **shared)
        return loss


def not_a_segmentation(task: Any) -> ConfigError:
    """The error for a configuration whose task predicts no pixels."""
    return ConfigError(f"predict --images needs the task graphattn.training.Segmentation, got {type(task).__name__}")
