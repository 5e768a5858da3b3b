"""The backends of sddmm, segment_softmax, segment_sum and spmm: which there are, and where their code is."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

from graphattn_kernels.backends import choose
from graphattn_kernels.errors import ArgumentError, BackendError
from graphattn_kernels.structure import Structure

__all__ = ["implementation", "pick"]


def pick(backend: str, structure: Structure, **tensors: Tensor) -> str:
    """Resolve the name of a backend for a sparse operation, whose tensors are given by name.

    Raises:
        ArgumentError: If there is no backend of this name, or a tensor is not on the device of the graph.
        BackendError: If a backend that was named cannot run here.
    """
    device = structure.by_target.index.device
    for name, tensor in tensors.items():
        if tensor.device != device:
            raise ArgumentError(f"{name} must be on the device of the graph, {device}, got {tensor.device}")
    return choose(backend, device)


@cache
def implementation(operation: str, backend: str) -> ModuleType:
    """The module of a backend; imported on first use, because Triton and Numba take a second to import.

    Raises:
        BackendError: If the backend is installed but broken.
    """
    try:
        return import_module(f"graphattn_kernels.{operation}.impl.{backend}")
    except ImportError as error:  # made for another NumPy, say
        raise BackendError(f"{backend} cannot be imported ({error}); repair it, or use backend='gather'") from error
