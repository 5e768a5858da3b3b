"""The Open Graph Benchmark: its files read without the ogb package, its splits, its metrics.

Importing this package imports neither torch nor torch_geometric nor ogb; everything is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphattn_datasets.ogb.features import ATOM_DIMS, BOND_DIMS

if TYPE_CHECKING:
    from graphattn_datasets.ogb.dataset import OgbDataset, OgbGraphs, OgbLinks, OgbNodes
    from graphattn_datasets.ogb.evaluate import Evaluator, official_evaluator
    from graphattn_datasets.ogb.meta import OGB_SETS, OgbMeta, ogb_meta

__all__ = [
    "ATOM_DIMS",
    "BOND_DIMS",
    "OGB_SETS",
    "Evaluator",
    "OgbDataset",
    "OgbGraphs",
    "OgbLinks",
    "OgbMeta",
    "OgbNodes",
    "official_evaluator",
    "ogb_meta",
]

_HOME = {
    "Evaluator": "evaluate",
    "OGB_SETS": "meta",
    "OgbDataset": "dataset",
    "OgbGraphs": "dataset",
    "OgbLinks": "dataset",
    "OgbMeta": "meta",
    "OgbNodes": "dataset",
    "official_evaluator": "evaluate",
    "ogb_meta": "meta",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME[name] == "dataset":
        from graphattn.optional import require

        require("torch_geometric", extra="pyg", purpose=f"graphattn_datasets.ogb.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
