"""Where data are looked for and processed copies are kept; writing a file whole or not at all."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from graphattn.errors import DataError

__all__ = [
    "DATA_VARIABLE",
    "CACHE_VARIABLE",
    "atomic_path",
    "cache_root",
    "data_folder",
    "data_setting",
    "make_folder",
    "say",
]

DATA_VARIABLE = "GRAPHATTN_DATA"
CACHE_VARIABLE = "GRAPHATTN_CACHE"


def data_folder() -> Path | None:
    """The read-only folder of raw data that ``GRAPHATTN_DATA`` names; None if it is unset or no folder."""
    value = os.environ.get(DATA_VARIABLE)
    folder = Path(value).expanduser() if value else None
    return folder if folder is not None and folder.is_dir() else None


def data_setting() -> str:
    """What ``GRAPHATTN_DATA`` says, for the error of a data set that is missing."""
    value, folder = os.environ.get(DATA_VARIABLE), data_folder()
    if not value:
        return f"{DATA_VARIABLE} is not set"
    return f"{DATA_VARIABLE} is {value}, which is not a folder" if folder is None else f"{DATA_VARIABLE} is {folder}"


def cache_root(root: str | os.PathLike[str] | None = None, family: str = "") -> str:
    """The folder for downloads and processed copies.

    Args:
        root: Used as it is if given; else ``$GRAPHATTN_CACHE/<family>`` or ``~/.cache/graphattn/<family>``.
        family: Name of the group of data sets, used only when ``root`` is None.
    """
    if root is not None:
        return str(Path(root).expanduser())
    base = os.environ.get(CACHE_VARIABLE) or "~/.cache/graphattn"
    return str(Path(base).expanduser() / family)


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Create a folder of the cache.

    Raises:
        DataError: If that is not possible (a read-only file system, no rights).
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot create the cache folder {folder} ({error}). "
            f"Pass another root= or set {CACHE_VARIABLE} to a folder that can be written to."
        ) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that is renamed to it when the block ends without an error.

    A reader sees the old file or the complete new one, whatever interrupts the writer.
    """
    target = Path(path)
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()


def say(message: str) -> None:
    """Tell the user, on standard error, what takes time or is not as expected."""
    print(f"graphattn_datasets: {message}", file=sys.stderr, flush=True)
