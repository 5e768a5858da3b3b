"""Names for computed files that change whenever what made them changes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import re
import sys
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["describe", "fingerprint", "package_version"]


def fingerprint(value: Any) -> str:
    """Twelve hexadecimal digits that tell a transform (or any argument) from every different one.

    A data set processed with one ``pre_transform`` is then never mistaken for one processed with another.
    What counts is what :func:`describe` lists.

    Args:
        value: A transform, a function, a tensor, plain data, or lists and dicts of them.

    Returns:
        The same string in every process for equal values.
    """
    text = json.dumps(describe(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def package_version(module: str) -> str:
    """The version of the package that a module belongs to, ``""`` if it has none."""
    top = module.partition(".")[0]
    # The code that runs first: what an installer noted may be older (editable installs) or named otherwise.
    version = getattr(sys.modules.get(top), "__version__", None)
    if version is None:
        try:
            version = importlib.metadata.version(top)
        except importlib.metadata.PackageNotFoundError:
            version = ""
    return str(version)


def describe(value: Any, _above: tuple[int, ...] = ()) -> Any:
    """Plain JSON values that hold all that makes a value what it is, and no address.

    Objects become their class, the version of its package, the code of its methods (inherited ones, too) and
    their attributes;
    functions their code, defaults and closure; tensors and arrays a hash; generators their seed.
    Global variables that a function reads are not followed.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in _above:
        return "<itself>"
    inner = functools.partial(describe, _above=(*_above, id(value)))
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(item) for item in value), key=repr)
    if isinstance(value, dict):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        flat = value.detach().cpu().to_dense().reshape(-1).view(torch.uint8)
        return _array(flat.numpy(), list(value.shape), str(value.dtype))
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return {"array": [str(value.dtype), list(value.shape), inner(value.tolist())]}
        return _array(value, list(value.shape), str(value.dtype))
    if isinstance(value, torch.Generator):
        return {"generator": value.initial_seed()}  # not the state, which moves on with every number drawn
    if isinstance(value, functools.partial):
        return {"partial": [inner(value.func), inner(value.args), inner(value.keywords)]}
    if inspect.ismethod(value):
        return {"method": [inner(value.__self__), inner(value.__func__)]}
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        details = [*_function(value, inner), inner(cells)]
        return {"function": [value.__module__, value.__qualname__, package_version(value.__module__), *details]}
    if isinstance(value, type):
        return {"class": _class(value, inner)}
    if hasattr(value, "__dict__"):
        return {"object": _class(type(value), inner), "attributes": inner(vars(value))}
    return {"object": _class(type(value), inner), "repr": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))}


def _class(cls: type, inner: Callable[[Any], Any]) -> list[Any]:
    methods = {}
    for base in cls.__mro__:
        for name, item in vars(base).items():
            function = getattr(item, "__func__", item)  # what a classmethod or staticmethod wraps
            if inspect.isfunction(function):
                methods[f"{base.__qualname__}.{name}"] = _function(function, inner)
    return [cls.__module__, cls.__qualname__, package_version(cls.__module__), methods]


def _function(function: FunctionType, inner: Callable[[Any], Any]) -> list[Any]:
    return [_code(function.__code__), inner(function.__defaults__), inner(function.__kwdefaults__)]


def _code(code: CodeType) -> str:
    constants = [_code(item) if isinstance(item, CodeType) else _constant(item) for item in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()[:12]


def _constant(value: Any) -> str:
    # A set in the source ("x in {...}") is a frozenset whose order differs from process to process.
    return f"frozenset{sorted(map(repr, value))}" if isinstance(value, frozenset) else repr(value)


def _array(values: np.ndarray, shape: list[int], dtype: str) -> dict[str, Any]:
    return {"array": [dtype, shape, hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:12]]}
