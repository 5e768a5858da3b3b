"""Calling any model on a batch: the names of its parameters choose the fields."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ConfigError

__all__ = ["call_model"]

_WHOLE_BATCH = ("data", "batch_data")  # a single parameter of this name receives the batch itself
_TARGETS = ("y",)  # labels never reach a model


def call_model(model: nn.Module, batch: Any) -> Any:
    """Call a model with the fields of a batch that its ``forward`` asks for by name.

    A parameter that the batch lacks keeps its default. A model whose only parameter is ``data`` or ``batch_data``
    receives the whole batch. ``batch`` (member of each node) and ``num_graphs`` are there for a single graph too;
    ``num_pairs`` (sum over graphs of the squared number of nodes, known without waiting for the device) for a batch.

    Args:
        model: Any module; ``forward(x, edge_index, edge_attr=None, batch=None)``, say.
        batch: A ``torch_geometric`` ``Data`` or ``Batch``.

    Returns:
        What the model returns.

    Raises:
        ConfigError: If a parameter has no default and the batch has no field of that name.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if len(parameters) == 1 and next(iter(parameters)) in _WHOLE_BATCH:
        return model(batch)
    fields = batch_fields(batch)
    arguments = {}
    for name, parameter in parameters.items():
        if fields.get(name) is not None:
            arguments[name] = fields[name]
        elif parameter.default is not parameter.empty:
            continue
        elif name == "batch":
            arguments[name] = torch.zeros(batch.num_nodes, dtype=torch.long, device=batch.edge_index.device)
        else:
            raise ConfigError(
                f"{type(model).__name__}.forward needs the argument {name!r}, which the data do not have. "
                f"Available fields: {', '.join(sorted(k for k, v in fields.items() if v is not None))}. "
                f"Give {name!r} a default, or add the field with a transform."
            )
    return model(**arguments)


def batch_fields(batch: Any) -> Mapping[str, Any]:
    """The fields of a batch by name, without the labels."""
    fields: dict[str, Any] = {key: value for key, value in batch.to_dict().items() if key not in _TARGETS}
    fields.setdefault("batch", getattr(batch, "batch", None))
    fields["num_graphs"] = getattr(batch, "num_graphs", 1)
    fields["num_nodes"] = batch.num_nodes
    first = getattr(batch, "_slice_dict", {}).get("x")  # of each graph; stays on the host when a batch moves
    if first is not None:
        fields["num_pairs"] = int(first.diff().square().sum())
    return fields


def num_rows(target: Tensor) -> int:
    """How many targets a loss or a metric is an average over (at least 1, so that averages stay finite)."""
    return max(1, target.shape[0])
