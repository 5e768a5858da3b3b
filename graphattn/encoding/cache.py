"""Encodings kept on disk."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn._files import write_atomically
from graphattn.encoding.fingerprints import fingerprint, package_version
from graphattn.encoding.hop import HopPairs
from graphattn.encoding.laplacian import LaplacianEncoding
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph

__all__ = ["EncodingCache", "graph_hash"]


def graph_hash(graph: TokenGraph) -> str:
    """Hexadecimal hash of a graph's size, members and edges; the order in which edges were given does not
    count."""
    digest = hashlib.sha256(repr((graph.num_sources, graph.num_targets, graph.leading)).encode())
    for array in (graph.rowptr, graph.col, graph.target_ptr, graph.source_ptr):
        digest.update(b"none" if array is None else array.cpu().to(torch.int64).numpy().tobytes())
        digest.update(b"|")
    return digest.hexdigest()


class EncodingCache:
    """Encodings on disk, one npz file for each graph and choice of parameters.

    Files are written beside their place and then renamed, so that a reader never sees half of one, and are
    read without pickle. A file that cannot be read is computed anew.

    Args:
        root: Folder of the files; made when first needed.

    Example:
        >>> cache = EncodingCache("~/.cache/graphattn/encoding")             # doctest: +SKIP
        >>> pe = cache.compute(laplacian_pe, graph, 8, normalization="rw")   # doctest: +SKIP
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser()

    def path(self, function: Callable[..., Any], graph: TokenGraph, *args: Any, **kwargs: Any) -> Path:
        """Where the result of ``function(graph, *args, **kwargs)`` is kept."""
        key = f"{graph_hash(graph)[:32]}-{fingerprint([function, package_version('graphattn'), args, kwargs])}"
        return self.root / key[:2] / f"{key}.npz"

    def compute(self, function: Callable[..., Any], graph: TokenGraph, *args: Any, **kwargs: Any) -> Any:
        """``function(graph, *args, **kwargs)``, from disk where it has been computed before.

        Args:
            function: An encoding that returns a tensor or a named tuple of tensors.
            graph: Its graph; results come back on this graph's device.
            args: Further arguments of ``function``.
            kwargs: Further arguments of ``function``.

        Raises:
            ArgumentError: If an argument is a generator, whose draws would not be repeated on a hit, or
                bfloat16, or the result is something else.
        """
        if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
            raise ArgumentError(
                "generator cannot be cached: a hit would not draw from it; cache the encoding with fixed "
                "signs and flip them afterwards with flip_signs"
            )
        if any(value is torch.bfloat16 for value in (*args, *kwargs.values())):
            raise ArgumentError("dtype torch.bfloat16 cannot be kept in npz; cache float32 and convert the result")
        path = self.path(function, graph, *args, **kwargs)
        kept = _read(path)
        if kept is None:
            result = function(graph, *args, **kwargs)
            _write(path, {"value": result} if isinstance(result, Tensor) else _fields(function, result))
            return result
        tensors = {name: torch.from_numpy(array).to(graph.device) for name, array in kept.items()}
        if set(tensors) == {"value"}:
            return tensors["value"]
        return next(kind(**tensors) for kind in _RESULTS if set(kind._fields) == set(tensors))


_RESULTS = (LaplacianEncoding, HopPairs)
# What damage makes numpy and zipfile raise; the last two, where it looks like an unknown compression or a password.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)


def _fields(function: Callable[..., Any], result: Any) -> dict[str, Tensor]:
    if not isinstance(result, _RESULTS):
        raise ArgumentError(
            f"function must return a tensor or one of {', '.join(kind.__name__ for kind in _RESULTS)}, got "
            f"{type(result).__name__} from {getattr(function, '__name__', function)!r}"
        )
    return result._asdict()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    known = [{"value"}, *(set(kind._fields) for kind in _RESULTS)]
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except _UNREADABLE:
        return None
    return arrays if set(arrays) in known else None


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    arrays: dict[str, Any] = {key: value.detach().cpu().numpy() for key, value in tensors.items()}
    write_atomically(path, lambda file: np.savez(file, **arrays))
