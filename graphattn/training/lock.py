"""One writer for each run folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from graphattn.errors import ConfigError

__all__ = ["only_writer"]


@contextlib.contextmanager
def only_writer(folder: Path, *, wait: float = 15.0) -> Iterator[None]:
    """Hold a folder against other processes; the system lets go of it when the process ends, however it ends.

    The lock is on the folder itself and leaves no file. Systems without ``flock`` (Windows) are not protected.

    Args:
        folder: The folder; it is made if need be.
        wait: Seconds to wait for another process: workers of a killed run live on for a moment and hold its lock.

    Raises:
        ConfigError: If another process still holds it then, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder} ({error}); choose another --run.root") from error
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ConfigError(
                        f"another process is writing to {folder}; wait for it or stop it, or choose another --run.name"
                    ) from None
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)
