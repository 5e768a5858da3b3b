"""What the data modules share: loading by name, and looking at what came."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import InMemoryDataset
from torch_geometric.transforms import BaseTransform, Compose

from graphattn.errors import DataError

__all__ = ["Transforms", "check_finite", "compose", "free_memory", "load"]

Transforms: TypeAlias = BaseTransform | list[BaseTransform] | None


def compose(transforms: Transforms) -> BaseTransform | None:
    """One transform of several."""
    if isinstance(transforms, list):
        return Compose(transforms) if transforms else None
    return transforms


def load(name: str, root: str | None, transform: Any, pre_transform: Any, options: dict[str, Any]) -> Any:
    """Load a data set by name."""
    from graphattn_datasets import load_dataset

    return load_dataset(name, root=root, transform=transform, pre_transform=pre_transform, **options)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a GPU can still give, what torch keeps for later included; ``None`` for other devices."""
    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def check_finite(what: str, graphs: Any) -> None:
    """One pass over the features, so that a bad file is named before a loss turns into NaN."""
    stored = [graphs._data] if isinstance(graphs, InMemoryDataset) else graphs
    for number, data in enumerate(stored):
        for field in ("x", "edge_attr", "pe"):
            value = getattr(data, field, None)
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                row = int(value.isfinite().reshape(len(value), -1).all(1).logical_not().nonzero()[0])
                where = f"graph {number}, row {row}" if len(stored) > 1 else f"row {row}"
                raise DataError(
                    f"data set {what}: {field} must be finite, got NaN or infinity first in {where} of "
                    f"{list(value.shape)}; mend the file, or fill the gaps in a transform"
                )
