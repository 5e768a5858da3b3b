"""Processed graphs on disk: tensors and plain values only, read with ``weights_only=True``."""

from __future__ import annotations

import pickle
import zipfile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.paths import atomic_path

__all__ = ["FORMAT", "Collated", "read_graphs", "write_graphs"]

FORMAT = 1
_NARROW = (torch.uint8, torch.int16, torch.int32)


class Collated(NamedTuple):
    """Many graphs in one: PyG's in-memory form.

    Args:
        data: Fields of all graphs one after another; node ids count inside their graph.
        slices: For each field the borders ``[num_graphs + 1]``; None for a single graph.
        extra: Plain values that belong to the set as a whole.
    """

    data: Data
    slices: dict[str, Tensor] | None
    extra: dict[str, Any] | None = None


def write_graphs(path: str, graphs: Collated, made_by: Any = None) -> None:
    """Write graphs, atomically and compactly (int64 values in the smallest integers that hold them).

    Args:
        path: File to write.
        graphs: What to write.
        made_by: A description kept in the file for people who wonder where it came from.

    Raises:
        ArgumentError: If a field holds something other than tensors, numbers, texts and lists of these.
    """
    fields = graphs.data.to_dict()
    for name, value in fields.items():
        _check_plain(name, value)
    payload = {
        "format": FORMAT,
        "made_by": made_by,
        "fields": {name: _narrow(value) for name, value in fields.items()},
        "wide": [name for name, value in fields.items() if _is_wide(value)],
        "slices": graphs.slices,
        "extra": graphs.extra,
    }
    with atomic_path(path) as temporary:
        torch.save(payload, temporary)


def read_graphs(path: str) -> Collated:
    """Read what :func:`write_graphs` wrote; nothing in the file is executed.

    Raises:
        DataError: If the file is damaged, of another format, or holds anything but tensors and plain values.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
        if payload["format"] != FORMAT:
            raise ValueError(f"format {payload['format']}, expected {FORMAT}")
        fields = dict(payload["fields"])
        for name in payload["wide"]:
            fields[name] = fields[name].to(torch.int64)
        return Collated(Data.from_dict(fields), payload["slices"], payload["extra"])
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0]
    return DataError(f"the processed file {path} cannot be read safely ({type(error).__name__}: {reason})")


def _is_wide(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64


def _narrow(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if _is_wide(value) and value.numel() > 0:
        low, high = (int(bound) for bound in value.aminmax())
        for dtype in _NARROW:
            if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
                return value.to(dtype)
    # torch.save writes the whole storage of a view.
    return value.clone() if value.layout == torch.strided and value._is_view() else value


def _check_plain(name: str, value: Any) -> None:
    if value is None or type(value) in (Tensor, bool, int, float, str):
        return
    if isinstance(value, list | tuple):
        for item in value:
            _check_plain(name, item)
    elif isinstance(value, dict):
        for item in value.values():
            _check_plain(name, item)
    else:
        raise ArgumentError(
            f"pre_transform put a {type(value).__name__} into the field {name!r}, which cannot be kept on "
            "disk safely (tensors, numbers, texts, lists and dicts can). Apply it as transform= instead."
        )
