"""Encodings: positions from a graph's structure, as functions of a TokenGraph and as PyG transforms."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphattn.encoding.cache import EncodingCache, graph_hash
from graphattn.encoding.degree import degree_encoding
from graphattn.encoding.fingerprints import fingerprint
from graphattn.encoding.hop import HopPairs, hop_distance, hop_pairs
from graphattn.encoding.laplacian import LaplacianEncoding, laplacian_pe
from graphattn.encoding.random_walk import random_walk_pe
from graphattn.encoding.sign import flip_signs
from graphattn.encoding.wl import WLVocabulary, wl_ids

if TYPE_CHECKING:
    from graphattn.encoding.bulk import precompute
    from graphattn.encoding.expander import AddExpander
    from graphattn.encoding.transforms import (
        AddDegree,
        AddHopDistance,
        AddLaplacianPE,
        AddRandomWalkPE,
        AddWL,
        NodeEncoding,
        SignFlip,
    )

__all__ = [
    "AddDegree",
    "AddExpander",
    "AddHopDistance",
    "AddLaplacianPE",
    "AddRandomWalkPE",
    "AddWL",
    "EncodingCache",
    "HopPairs",
    "LaplacianEncoding",
    "NodeEncoding",
    "SignFlip",
    "WLVocabulary",
    "degree_encoding",
    "fingerprint",
    "flip_signs",
    "graph_hash",
    "hop_distance",
    "hop_pairs",
    "laplacian_pe",
    "precompute",
    "random_walk_pe",
    "wl_ids",
]

# The transforms subclass PyG's, so their module is imported when one of them is first asked for.
_LAZY = {
    "AddDegree": "transforms",
    "AddExpander": "expander",
    "AddHopDistance": "transforms",
    "AddLaplacianPE": "transforms",
    "AddRandomWalkPE": "transforms",
    "AddWL": "transforms",
    "NodeEncoding": "transforms",
    "SignFlip": "transforms",
    "precompute": "bulk",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
