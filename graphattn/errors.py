"""The one error hierarchy of the library.

Every error that graphattn raises on purpose derives from :class:`GraphattnError` and from the built-in
exception that Python users would catch for it. Its text names the argument, what was expected and what came.
"""

from __future__ import annotations

from graphattn_kernels.errors import ArgumentError, ArgumentTypeError, BackendError, GraphattnError

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GraphattnError",
    "MissingPackageError",
    "TrainingError",
]


class MissingPackageError(GraphattnError, ImportError):
    """An optional package is needed and not installed."""


class DataError(GraphattnError, RuntimeError):
    """A data file is missing, truncated or not what its format says."""


class CheckpointError(GraphattnError, RuntimeError):
    """A checkpoint cannot be read, is not safe to read, or does not fit the model."""


class ConfigError(GraphattnError, ValueError):
    """A configuration names something that does not exist or does not fit together."""


class TrainingError(GraphattnError, RuntimeError):
    """Training cannot go on (a loss that is not a number, say)."""
