"""Training with Lightning: tasks, data modules, schedules, run folders. Needs ``pip install "graphattn[train]"``.

A task holds any ``nn.Module`` and calls it by matching the names of ``forward``'s parameters to the fields of the
batch, so a model that knows nothing of this library trains here by its class path. ``graphattn fit --config x.yaml``
is the command; the classes also work with a plain ``lightning.Trainer``.
"""

from __future__ import annotations

import importlib
from typing import Any

from graphattn.optional import require

# Imported on first use: the results of a run can be read and printed without Lightning.
_HOME = {
    "AtomicCheckpointIO": "checkpoint",
    "AugmentSegmentation": "segmentation_augmentation",
    "ClusterDataModule": "data",
    "CompleteGraph": "transforms",
    "EpochSeed": "callbacks",
    "FeatureDropout": "transforms",
    "GraphClassification": "tasks",
    "GraphDataModule": "data",
    "GraphRegression": "tasks",
    "GraphTask": "task",
    "History": "callbacks",
    "ImageClassification": "tasks",
    "ImageDataModule": "data",
    "LanguageModelling": "tasks",
    "LinkDataModule": "data",
    "LinkPrediction": "tasks",
    "NeighborDataModule": "data",
    "InductiveNodeClassification": "tasks",
    "NodeClassification": "tasks",
    "NodeDataModule": "data",
    "NodeIds": "transforms",
    "PromptDataModule": "data",
    "RandomCrop": "augmentation",
    "RandomFlip": "augmentation",
    "ReduceLROnPlateau": "schedules",
    "SSAPhases": "subsampling",
    "Segmentation": "tasks",
    "SegmentationDataModule": "data",
    "Sparsification": "tasks",
    "SelfEnsembling": "subsampling",
    "StopOnNaN": "callbacks",
    "TextDataModule": "data",
    "WarmupCosine": "schedules",
    "layerwise_inference": "layerwise",
    "load_checkpoint": "checkpoint",
    "run": "main",
    "run_leaderboard": "leaderboard.command",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for package in ("torch_geometric", "lightning", "jsonargparse", "torchmetrics"):
        require(package, extra="train", purpose="graphattn.training")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
