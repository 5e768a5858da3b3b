"""Reading npz files and cutting many graphs out of flat arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from graphattn.errors import DataError

__all__ = ["both_directions", "check_lengths", "gather_ranges", "offsets", "read_npz"]


def read_npz(path: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read named arrays of an npz file; pickled objects are refused.

    Raises:
        DataError: If the file is truncated or corrupt or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            absent = [name for name in names if name not in archive.files]
            if absent:
                raise DataError(f"{path}: no array named {', '.join(absent)}; it holds {', '.join(archive.files)}")
            return {name: archive[name] for name in names}
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path} is truncated or corrupt ({type(error).__name__}: {error}). Delete it and get it again."
        ) from error


def check_lengths(path: str, **pairs: tuple[int, int]) -> None:
    """Raise a :class:`DataError` for the first name whose (found, expected) lengths differ."""
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise DataError(f"{path}: {name} has {found} rows, its counts say {expected}. Get the file again.")


def offsets(counts: np.ndarray) -> np.ndarray:
    """Borders ``[G + 1]`` of consecutive ranges of the given lengths ``[G]``."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def gather_ranges(borders: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Row numbers of the ranges ``order``, one after another; range g is ``borders[g]:borders[g + 1]``."""
    lengths = (borders[1:] - borders[:-1])[order]
    shift = borders[order] - offsets(lengths)[:-1]
    return np.repeat(shift, lengths) + np.arange(int(lengths.sum()))


def both_directions(edges: np.ndarray) -> np.ndarray:
    """Edges ``[B, 2]`` given once -> ``[2, 2B]``: e0, its reverse, e1, its reverse, ..."""
    return np.stack((edges, edges[:, ::-1]), axis=1).reshape(-1, 2).T.astype(np.int64, copy=False)
