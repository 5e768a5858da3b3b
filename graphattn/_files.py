"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that ``path`` holds either its old content or all of the new one, whatever happens.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file takes the name at last.

    Args:
        path: The file; its folder is made if need be.
        write: Receives the open binary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _give_usual_permissions(name)
        os.replace(name, path)
    except BaseException:  # Ctrl-C too: the temporary file goes, the old file stays
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _give_usual_permissions(name: str) -> None:
    """mkstemp makes files that only their owner may read; give them what ``open`` would have given."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
