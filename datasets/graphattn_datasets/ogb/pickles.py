"""Reading the two kinds of pickles in OGB's folders with an allow-list: nothing else in them is ever called."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphattn.errors import DataError
from graphattn_datasets.storage import Collated

__all__ = ["read_processed", "read_split_file"]


def read_split_file(path: Path) -> dict[str, Any]:
    """A split of a link property set: a dict of arrays, lists, numbers and texts, arrays as tensors.

    OGB's own files are pickled numpy arrays, which ``torch.load(weights_only=True)`` refuses whatever is added to
    its list; later files of other people hold tensors.

    Raises:
        DataError: If the file is missing, damaged, or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with torch.serialization.safe_globals(_numpy_globals()):
                found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Restricted)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error
    except (pickle.UnpicklingError, IndexError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold a dict of arrays, got {type(found).__name__}")
    return {name: _tensors(value) for name, value in found.items()}


def read_processed(path: Path) -> Collated:
    """The graphs that ogb itself processed, ``processed/geometric_data_processed.pt``.

    Raises:
        DataError: If the file is damaged or holds anything but PyG's classes and tensors.
    """
    from torch_geometric.data.data import Data, DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    try:
        # Binary sets store their number of nodes as a numpy number.
        allowed = [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage, *_numpy_globals()]
        with torch.serialization.safe_globals(allowed):
            data, slices = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error
    except (pickle.UnpicklingError, IndexError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    return Collated(data, {name: torch.as_tensor(value) for name, value in slices.items()} if slices else None)


def _tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    return {key: _tensors(item) for key, item in value.items()} if isinstance(value, dict) else value


def _encode(text: str, encoding: str) -> bytes:
    """``_codecs.encode`` as numpy's old pickles use it, for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    core: Any = getattr(np, "_core", None) or np.core  # numpy 2 and 1
    multiarray = core.multiarray
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): dict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed[module, "_reconstruct"] = multiarray._reconstruct
        allowed[module, "scalar"] = multiarray.scalar
    for name in ("LongStorage", "FloatStorage", "DoubleStorage", "IntStorage", "BoolStorage"):
        allowed["torch", name] = getattr(torch, name)
    return allowed


def _numpy_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    kinds = [type(np.dtype(kind)) for kind in ("i8", "i4", "i2", "u1", "f8", "f4", "?")]
    named = [(value, ".".join(name)) for name, value in _allowed().items() if name[0].startswith("numpy")]
    return [*named, *kinds]


class _Restricted:
    """What ``torch.load`` needs of a pickle module, with an unpickler that knows the allow-list only."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found = _allowed().get((module, name))
            if found is None:
                raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a split file")
            return found

    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Restricted.Unpickler(file, **options).load()

    @staticmethod
    def loads(content: bytes, **options: Any) -> Any:
        return _Restricted.load(io.BytesIO(content), **options)


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0]
    return DataError(
        f"{path} is truncated or corrupt, or not safe to read ({type(error).__name__}: {reason}). "
        "Delete it and get it again."
    )
