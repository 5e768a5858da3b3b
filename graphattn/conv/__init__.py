"""The mechanisms as PyTorch Geometric layers: PyG's constructors, inputs, state dicts and outputs.

The layers subclass PyG's ``MessagePassing``, which ``to_hetero`` and ``torch_geometric.explain`` look for, so they need
``pip install "graphattn[pyg]"``; it is imported with the first layer. The same mathematics without PyG is in
:mod:`graphattn.mechanisms` and :func:`graphattn.attend`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphattn.conv.graph_transformer_conv import GraphTransformerConv as GraphTransformerConv
    from graphattn.conv.transformer_conv import TransformerConv as TransformerConv

__all__ = ["GraphTransformerConv", "TransformerConv"]

_HOME = {"GraphTransformerConv": "graph_transformer_conv", "TransformerConv": "transformer_conv"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
