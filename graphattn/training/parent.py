"""Runs that end with the process that started them, even if that was killed."""

from __future__ import annotations

import os
import signal
import threading
import time

__all__ = ["FOLLOWS_PARENT", "GRACE", "follow_parent"]

FOLLOWS_PARENT = "GRAPHATTN_FOLLOWS_PARENT"
"""Set in the environment of a process that is to end with its parent."""
GRACE = {signal.SIGINT: 30.0, signal.SIGTERM: 10.0, getattr(signal, "SIGKILL", signal.SIGTERM): 10.0}
"""Signals that end a run, with more and more force, and the seconds that it has after each."""
_POLL = 1.0  # seconds


def follow_parent() -> None:
    """Where :data:`FOLLOWS_PARENT` is set, end this process soon after its parent: who was killed stops nobody.

    Processes that this one starts do not inherit the wish. On Windows nothing comes of it, where the number of the
    parent stays when the parent is gone.
    """
    if os.environ.pop(FOLLOWS_PARENT, None) is not None:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL)
    print("the process that started this run is gone; stopping", flush=True)
    for number, seconds in GRACE.items():
        os.kill(os.getpid(), number)
        time.sleep(seconds)
