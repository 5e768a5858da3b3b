"""Names for processed copies that change whenever what made them changes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import re
import sys
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["describe", "fingerprint", "package_version"]


def fingerprint(description: Any) -> str:
    """Twelve hexadecimal digits that identify a description made by :func:`describe`."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def package_version(module: str) -> str:
    """The version of the package that a module belongs to, ``""`` if it has none."""
    top = module.partition(".")[0]
    version = getattr(sys.modules.get(top), "__version__", None)
    if version is None:
        try:
            version = importlib.metadata.version(top)
        except importlib.metadata.PackageNotFoundError:
            version = ""
    return str(version)


def describe(value: Any, _above: tuple[int, ...] = ()) -> Any:
    """Turn a transform (or any argument) into plain JSON values that tell it from every different one.

    Objects become their class, the version of its package, the code of its methods and their attributes;
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
        return _array(value, list(value.shape), str(value.dtype))
    if isinstance(value, torch.Generator):
        # The seed and not the state, which moves on with every number drawn.
        return {"generator": value.initial_seed()}
    if isinstance(value, functools.partial):
        return {"partial": [inner(value.func), inner(value.args), inner(value.keywords)]}
    if inspect.ismethod(value):
        return {"method": [inner(value.__self__), inner(value.__func__)]}
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        details = [
            _code(value.__code__),
            inner(value.__defaults__),
            inner(value.__kwdefaults__),
            inner(cells),
        ]
        return {"function": [value.__module__, value.__qualname__, package_version(value.__module__), *details]}
    if isinstance(value, type):
        return {"class": _class(value)}
    if hasattr(value, "__dict__"):
        return {"object": _class(type(value)), "attributes": inner(vars(value))}
    return {"object": _class(type(value)), "repr": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))}


def _class(cls: type) -> list[Any]:
    methods = {name: _code(item.__code__) for name, item in vars(cls).items() if inspect.isfunction(item)}
    return [cls.__module__, cls.__qualname__, package_version(cls.__module__), methods]


def _code(code: CodeType) -> str:
    constants = [_code(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()[:12]


def _array(values: np.ndarray, shape: list[int], dtype: str) -> dict[str, Any]:
    return {"array": [dtype, shape, hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:12]]}
