"""Reading OGB's ``.csv.gz`` files of numbers: no pandas, bounded memory, every damage named."""

from __future__ import annotations

import gzip
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from graphattn.errors import DataError

__all__ = ["read_numbers", "read_rows", "table_facts"]

_CHUNK = 1 << 26  # bytes of text parsed at once, which bounds the memory beside the result
_GAP = re.compile(rb"(?<=,)(?=[,\n])|(?<=\n)(?=[,\n])|^(?=,)")


def read_numbers(path: Path, *, real: Any = np.float64) -> np.ndarray:
    """Read a table of numbers without header.

    Args:
        path: A gzip file with rows of numbers between commas; an empty cell is NaN.
        real: Floating type, used unless every number is an integer.

    Returns:
        ``[rows, columns]``, int64 if every number is an integer, else ``real``.

    Raises:
        DataError: If the file is missing, truncated, corrupt or not such a table.
    """
    parts: list[np.ndarray] = []
    columns: int | None = None

    def take(text: bytes) -> None:
        nonlocal columns
        if text.strip():
            part = _parse(path, text, columns)
            columns = part.shape[1]
            parts.append(part if part.dtype == np.int64 else part.astype(real, copy=False))

    _each_block(path, take)
    if not parts:
        return np.zeros((0, 0), dtype=np.int64)
    if len(parts) == 1:
        return parts[0]
    # A later block may be the first with a decimal point.
    whole = all(part.dtype == np.int64 for part in parts)
    return np.concatenate(parts, dtype=np.int64 if whole else real, casting="unsafe")


def read_rows(path: Path) -> list[str]:
    """Read a file of text, one entry a line (subtoken labels).

    Raises:
        DataError: If the file is missing, truncated or corrupt.
    """
    blocks: list[bytes] = []
    _each_block(path, blocks.append)
    return b"".join(blocks).decode().splitlines()


def table_facts(path: Path) -> tuple[int, bytes]:
    """Number of columns, and the checksum and length that end a gzip file; neither reads the whole file.

    Raises:
        DataError: If the file is missing or is no gzip file.
    """
    try:
        with gzip.open(path, "rb") as file:
            columns = file.readline().count(b",") + 1
        with open(path, "rb") as raw:
            raw.seek(-8, 2)
            return columns, raw.read(8)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _damaged(path, error) from error


def _each_block(path: Path, take: Callable[[bytes], None]) -> None:
    """Give whole lines to ``take``, many at a time."""
    rest = b""
    try:
        if path.stat().st_size == 0:  # gzip reads nothing from it, without a word
            raise EOFError("the file is empty")
        with gzip.open(path, "rb") as file:
            while block := file.read(_CHUNK):
                block = rest + block
                cut = block.rfind(b"\n") + 1
                rest = block[cut:]
                take(block[:cut])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _damaged(path, error) from error
    if rest:
        take(rest + b"\n")


def _parse(path: Path, text: bytes, columns: int | None) -> np.ndarray:
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    if b'"' in text:
        text = text.replace(b'""', b"nan")  # pandas writes a lone missing number so
    if b",," in text or b",\n" in text or b"\n," in text or text.startswith(b","):
        text = _GAP.sub(b"nan", text)
    rows = text.count(b"\n")
    columns = columns or text[: text.index(b"\n")].count(b",") + 1
    whole = not text.translate(None, b"0123456789-+,\n ")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            flat = np.fromstring(text.replace(b"\n", b","), dtype=np.int64 if whole else np.float64, sep=",")
        except (DeprecationWarning, ValueError) as error:
            raise DataError(f"{path} must hold numbers between commas ({error}). Delete it and get it again.") from None
    if flat.size != rows * columns:
        raise DataError(
            f"{path} must have {columns} numbers in each row, got {flat.size} in {rows} rows. "
            "Delete it and get it again."
        )
    return flat.reshape(rows, columns)


def _damaged(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} is missing")
    return DataError(f"{path} is truncated or corrupt ({type(error).__name__}: {error}). Delete it and get it again.")
