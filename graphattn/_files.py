"""What files that are written beside their place and then renamed have in common."""

from __future__ import annotations

import os

__all__ = ["give_usual_permissions"]


def give_usual_permissions(name: str) -> None:
    """mkstemp makes files that only their owner may read; give them what ``open`` would have given."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)
