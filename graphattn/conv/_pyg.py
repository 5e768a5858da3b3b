"""What this room takes from PyTorch Geometric, or one clear error where it is missing."""

from __future__ import annotations

from graphattn.optional import require

require("torch_geometric", extra="pyg", purpose="graphattn.conv")

from torch_geometric.nn.conv import MessagePassing  # noqa: E402
from torch_geometric.nn.dense import HeteroDictLinear, HeteroLinear, Linear  # noqa: E402
from torch_geometric.nn.inits import glorot, ones, zeros  # noqa: E402
from torch_geometric.nn.parameter_dict import ParameterDict  # noqa: E402
from torch_geometric.utils import scatter  # noqa: E402

__all__ = [
    "HeteroDictLinear",
    "HeteroLinear",
    "Linear",
    "MessagePassing",
    "ParameterDict",
    "glorot",
    "ones",
    "scatter",
    "zeros",
]
