"""The mechanisms as PyTorch Geometric layers: PyG's constructors, inputs, state dicts and outputs.

The layers subclass PyG's ``MessagePassing``, which ``to_hetero`` and ``torch_geometric.explain`` look for, so they need
``pip install "graphattn[pyg]"``; it is imported with the first layer. The same mathematics without PyG is in
:mod:`graphattn.mechanisms` and :func:`graphattn.attend`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphattn.conv.gat_conv import GATConv as GATConv
    from graphattn.conv.gatv2_conv import GATv2Conv as GATv2Conv
    from graphattn.conv.gps_conv import GPSConv as GPSConv
    from graphattn.conv.graph_transformer_conv import GraphTransformerConv as GraphTransformerConv
    from graphattn.conv.hgt_conv import HGTConv as HGTConv
    from graphattn.conv.infsa_conv import InfSAConv as InfSAConv
    from graphattn.conv.sparsifiner_conv import SparsifinerConv as SparsifinerConv
    from graphattn.conv.ssa_conv import SSAConv as SSAConv
    from graphattn.conv.transformer_conv import TransformerConv as TransformerConv

__all__ = [
    "GATConv",
    "GATv2Conv",
    "GPSConv",
    "GraphTransformerConv",
    "HGTConv",
    "InfSAConv",
    "SSAConv",
    "SparsifinerConv",
    "TransformerConv",
]

_HOME = {
    "GATConv": "gat_conv",
    "GATv2Conv": "gatv2_conv",
    "GPSConv": "gps_conv",
    "GraphTransformerConv": "graph_transformer_conv",
    "HGTConv": "hgt_conv",
    "InfSAConv": "infsa_conv",
    "SSAConv": "ssa_conv",
    "SparsifinerConv": "sparsifiner_conv",
    "TransformerConv": "transformer_conv",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
