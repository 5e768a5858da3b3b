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
    "triton": "fused Triton kernels for CUDA; csr_attention only",
}

# Looked up once, not imported: importing triton is slow, and torch.compile cannot trace the search.
_HAS_TRITON = find_spec("triton") is not None


def status() -> dict[str, str | None]:
    """Each backend with the reason why it cannot run on this machine, or ``None`` where it can."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {**dict.fromkeys(BACKENDS), "triton": _no_triton(device)}


def choose(backend: str, triton_device: torch.device | None = None) -> str:
    """Resolve a backend name; ``"auto"`` takes the fastest one that serves every option.

    Args:
        backend: A name, or ``"auto"``.
        triton_device: Where the tensors are, for an operation that has Triton kernels.

    Raises:
        ArgumentError: If there is no backend of this name.
        BackendError: If a backend that was named cannot run here.
    """
    if backend == "auto":
        cuda = triton_device is not None and triton_device.type == "cuda"
        return "triton" if cuda and _HAS_TRITON else "gather"
    if backend not in BACKENDS:
        raise ArgumentError(f"backend must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}")
    if backend == "triton":
        no_kernel = "this operation has no Triton implementation"
        reason = no_kernel if triton_device is None else _no_triton(triton_device)
        if reason is not None:
            raise BackendError(f"backend 'triton' cannot run: {reason}; use 'gather' or 'auto'")
    return backend


def _no_triton(device: torch.device) -> str | None:
    if not _HAS_TRITON:
        return "triton is not installed (pip install triton)"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"it needs CUDA tensors, got {device.type} (or TRITON_INTERPRET=1, set before triton is imported)"
