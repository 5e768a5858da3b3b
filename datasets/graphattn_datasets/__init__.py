"""Data sets for graphattn: PyG data sets made, read or downloaded, each with a cache that can be trusted.

``load_dataset(name)`` loads one, ``list_datasets()`` names them, ``dataset_info(name)`` tells about one.
Importing this package imports neither torch nor torch_geometric; everything is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphattn_datasets.heterophilous import HeterophilousGraphDataset
    from graphattn_datasets.info import Anchor, DatasetInfo
    from graphattn_datasets.loading import Splits, load_dataset
    from graphattn_datasets.metrics import (
        average_precision,
        balanced_accuracy,
        batch_mean_balanced_accuracy,
        roc_auc,
        sbm_class_weights,
    )
    from graphattn_datasets.peptides import PeptidesArrays, PeptidesLRGB
    from graphattn_datasets.planetoid import Planetoid
    from graphattn_datasets.registry import DATASETS, dataset_info, list_datasets
    from graphattn_datasets.sbm import sbm_cluster_graphs, sbm_pattern_graphs, sbm_patterns
    from graphattn_datasets.sbm_datasets import SBMCluster, SBMPattern
    from graphattn_datasets.tu import DGCNNText, TUDataset
    from graphattn_datasets.zinc import ZINCArrays, ZINCPickles

__all__ = [
    "DATASETS",
    "Anchor",
    "DGCNNText",
    "DatasetInfo",
    "HeterophilousGraphDataset",
    "PeptidesArrays",
    "PeptidesLRGB",
    "Planetoid",
    "SBMCluster",
    "SBMPattern",
    "Splits",
    "TUDataset",
    "ZINCArrays",
    "ZINCPickles",
    "average_precision",
    "balanced_accuracy",
    "batch_mean_balanced_accuracy",
    "dataset_info",
    "list_datasets",
    "load_dataset",
    "roc_auc",
    "sbm_class_weights",
    "sbm_cluster_graphs",
    "sbm_pattern_graphs",
    "sbm_patterns",
]

_PLAIN = {
    "DATASETS": "registry",
    "dataset_info": "registry",
    "list_datasets": "registry",
    "Anchor": "info",
    "DatasetInfo": "info",
    "Splits": "loading",
    "load_dataset": "loading",
    "average_precision": "metrics",
    "balanced_accuracy": "metrics",
    "batch_mean_balanced_accuracy": "metrics",
    "roc_auc": "metrics",
    "sbm_class_weights": "metrics",
    "sbm_cluster_graphs": "sbm",
    "sbm_pattern_graphs": "sbm",
    "sbm_patterns": "sbm",
}
_NEEDS_PYG = {
    "SBMCluster": "sbm_datasets",
    "SBMPattern": "sbm_datasets",
    "Planetoid": "planetoid",
    "HeterophilousGraphDataset": "heterophilous",
    "ZINCArrays": "zinc",
    "ZINCPickles": "zinc",
    "PeptidesArrays": "peptides",
    "PeptidesLRGB": "peptides",
    "TUDataset": "tu",
    "DGCNNText": "tu",
}


def __getattr__(name: str) -> Any:
    if name in _NEEDS_PYG:
        from graphattn.optional import require

        require("torch_geometric", extra="pyg", purpose=f"graphattn_datasets.{name}")
    module = _NEEDS_PYG.get(name) or _PLAIN.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
