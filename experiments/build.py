"""Objects from the ``class_path`` and ``init_args`` of a configuration, without the command line's parser."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["class_of", "factory", "make"]

_HOME = "graphattn.training"


def class_of(given: dict[str, Any]) -> Any:
    """The class that ``class_path`` names."""
    module, _, name = given["class_path"].rpartition(".")
    if module == _HOME:  # straight from its file: the package asks for the command line's parser first
        module = f"{_HOME}.{importlib.import_module(_HOME)._HOME[name]}"
    return getattr(importlib.import_module(module), name)


def make(given: Any) -> Any:
    """The object that ``class_path`` and ``init_args`` describe, or the value itself."""
    if isinstance(given, list):
        return [make(part) for part in given]
    if not isinstance(given, dict) or "class_path" not in given:
        return given
    return class_of(given)(**{key: make(value) for key, value in given.get("init_args", {}).items()})


def factory(given: dict[str, Any]) -> Callable[..., Any]:
    """The class that is described, which takes its other arguments later: an optimizer, a schedule."""
    return partial(class_of(given), **given.get("init_args", {}))
