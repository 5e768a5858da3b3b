"""Attention over explicit token graphs.

Every attention mechanism is attention over a graph of tokens: who may read whom (:class:`TokenGraph`), how much
(score and normaliser), and what moves (propagator). :func:`attend` is the one operation.

Names are imported on first use, so that ``import graphattn`` and the command line start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphattn.attention import AttentionOutput as AttentionOutput
    from graphattn.attention import attend as attend
    from graphattn.attention import draw_seed as draw_seed
    from graphattn.attention import edge_weights as edge_weights
    from graphattn.attention import merge as merge
    from graphattn.explanation import explain as explain
    from graphattn.graph import TokenGraph as TokenGraph
    from graphattn.graph import patterns as patterns
    from graphattn.listing import list_backends as list_backends
    from graphattn.listing import list_datasets as list_datasets
    from graphattn.listing import list_mechanisms as list_mechanisms
    from graphattn.listing import list_models as list_models
    from graphattn.models import create_model as create_model

_HOME = {
    "AttentionOutput": "graphattn.attention",
    "attend": "graphattn.attention",
    "draw_seed": "graphattn.attention",
    "edge_weights": "graphattn.attention",
    "merge": "graphattn.attention",
    "explain": "graphattn.explanation",
    "TokenGraph": "graphattn.graph",
    "patterns": "graphattn.graph",
    "list_backends": "graphattn.listing",
    "list_datasets": "graphattn.listing",
    "list_mechanisms": "graphattn.listing",
    "list_models": "graphattn.listing",
    "create_model": "graphattn.models",
}

__all__ = [
    "AttentionOutput",
    "TokenGraph",
    "attend",
    "create_model",
    "draw_seed",
    "edge_weights",
    "explain",
    "list_backends",
    "list_datasets",
    "list_mechanisms",
    "list_models",
    "merge",
    "patterns",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
