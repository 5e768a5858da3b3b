"""Errors of the kernels; ``graphattn.errors`` builds the library's hierarchy on them."""

from __future__ import annotations

__all__ = ["ArgumentError", "ArgumentTypeError", "BackendError", "GraphattnError"]


class GraphattnError(Exception):
    """Base of every error that graphattn raises on purpose."""


class ArgumentError(GraphattnError, ValueError):
    """An argument has an impossible value or shape."""


class ArgumentTypeError(GraphattnError, TypeError):
    """An argument has the wrong type or dtype."""


class BackendError(GraphattnError, RuntimeError):
    """A backend that was asked for by name cannot run here; the text says why."""
