"""Optional packages: imported on first use, never to find out whether they exist."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from graphattn.errors import MissingPackageError

__all__ = ["available", "require"]


def require(module: str, *, extra: str, purpose: str | None = None) -> ModuleType:
    """Import an optional package or say how to get it.

    Args:
        module: Import name, e.g. ``"torch_geometric"``.
        extra: The extra of this distribution that brings the package, e.g. ``"pyg"``.
        purpose: What needs it, for the error text.

    Raises:
        MissingPackageError: If the import fails; the text names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a native library of it is missing or does not fit
        what = f"{purpose} needs" if purpose else "this needs"
        raise MissingPackageError(
            f'{what} the package "{module.partition(".")[0]}", which cannot be imported ({error}). '
            f'Install it with: pip install "graphattn[{extra}]"'
        ) from error


def available(module: str) -> bool:
    """Whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
