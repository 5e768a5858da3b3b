"""What a run ran with: versions, device, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import torch

__all__ = ["versions"]

_PACKAGES = (
    "graphattn", "torch", "torch-geometric", "lightning", "torchmetrics", "ogb", "numpy", "scipy", "numba", "triton",
)  # fmt: skip


def versions(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, device and git commit as plain values.

    Args:
        device: The device that the run used.

    Returns:
        ``python``, ``platform``, ``command``, one entry a package, ``device``, ``memory_gib``, ``cuda``, ``commit``
        (``None`` outside a git repository; with ``+changes`` where files were changed).
    """
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["device"] = device_name(device)
    found["memory_gib"] = memory_gib(device)
    found["cuda"] = torch.version.cuda
    found["commit"] = _commit()
    found["command"] = " ".join(sys.argv)
    return found


def device_name(device: torch.device | str) -> str:
    """A GPU's name, or the kind of device."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def memory_gib(device: torch.device | str) -> float | None:
    """Memory of a GPU, or of the machine, in GiB; ``None`` where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _commit() -> str | None:
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
