"""Launches that are looked at and not run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from graphattn.testing import require_or_skip

require_or_skip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = importlib.import_module("graphattn_kernels._triton")
needs_device = [
    pytest.mark.triton,
    pytest.mark.skipif(DEVICE == "cpu" and not TRITON._INTERPRETED, reason="needs CUDA or TRITON_INTERPRET=1"),
]


@cache
def examiner(kernel: Any) -> Callable[..., Any]:
    """Triton's own look at the arguments of a kernel: what it compiles for."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    if not isinstance(kernel, JITFunction):  # the interpreter's
        names = "do_not_specialize", "do_not_specialize_on_alignment"
        kernel = JITFunction(kernel.fn, **{name: kernel.kwargs[name] for name in names})
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))


class Recorder:
    """Stands in for ``launch``: nothing runs, and kinds are compared with what they stand for."""

    def __init__(self) -> None:
        self.seen: dict[Any, Any] = {}
        self.launches = 0

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any], kind: Any = None
    ) -> None:
        assert kind is not None  # else every argument is looked at, every time
        _, looks, options = examiner(kernel)(*args, **constants)
        compiled = looks, options, {x.get_device() for x in args if isinstance(x, Tensor)}
        assert self.seen.setdefault((id(kernel), kind), compiled) == compiled
        self.launches += 1


def moved(x: Any) -> Any:
    """The same numbers from an address on that is no multiple of 16."""
    return x if x is None else torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
