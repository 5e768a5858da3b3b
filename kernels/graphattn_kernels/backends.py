"""Which implementations exist, and which of them can run here."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from graphattn_kernels.errors import ArgumentError, BackendError

__all__ = ["BACKENDS", "choose", "status"]

BACKENDS: dict[str, str] = {
    "reference": "dense and differentiable any number of times: the oracle; any device and dtype",
    "gather": "gather, run-wise reductions, own backward; any device and dtype",
    "numba": "loops compiled by Numba for CPU",
    "triton": "Triton kernels for CUDA",
}

# Looked up once, not imported: importing them is slow, and torch.compile cannot trace the search.
_HAS_NUMBA = find_spec("numba") is not None
_HAS_TRITON = find_spec("triton") is not None


def status() -> dict[str, str | None]:
    """Each backend with the reason why it cannot run on this machine, or ``None`` where it can."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    triton = _no_triton(cuda if torch.cuda.is_available() else cpu)
    return {**dict.fromkeys(BACKENDS), "numba": _no_numba(cpu), "triton": triton}


def choose(backend: str, device: torch.device | None = None) -> str:
    """Resolve a backend name; ``"auto"`` takes the fastest one that serves every option.

    Args:
        backend: A name, or ``"auto"``.
        device: Where the tensors are, for an operation that has fused kernels.

    Raises:
        ArgumentError: If there is no backend of this name.
        BackendError: If a backend that was named cannot run here.
    """
    if backend == "auto":
        if device is not None and device.type == "cuda" and _HAS_TRITON:
            return "triton"
        return "numba" if device is not None and device.type == "cpu" and _HAS_NUMBA else "gather"
    if backend not in BACKENDS:
        raise ArgumentError(f"backend must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}")
    if backend in ("numba", "triton"):
        if device is None:
            reason: str | None = f"this operation has no {backend.capitalize()} implementation"
        else:
            reason = _no_numba(device) if backend == "numba" else _no_triton(device)
        if reason is not None:
            raise BackendError(f"backend {backend!r} cannot run: {reason}; use 'gather' or 'auto'")
    return backend


def _no_numba(device: torch.device) -> str | None:
    if not _HAS_NUMBA:
        return "numba is not installed (pip install numba)"
    return None if device.type == "cpu" else f"it needs CPU tensors, got {device.type}"


def _no_triton(device: torch.device) -> str | None:
    if not _HAS_TRITON:
        return "triton is not installed (pip install triton)"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"it needs CUDA tensors, got {device.type} (or TRITON_INTERPRET=1, set before triton is imported)"
