"""Texts of characters: tinyshakespeare, and the documentation strings of Python's standard library.

Importing this package does not import torch; everything is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphattn_datasets.text.dataset import TextSet

__all__ = ["TextSet"]


def __getattr__(name: str) -> Any:
    if name != "TextSet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("graphattn_datasets.text.dataset").TextSet
