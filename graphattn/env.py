"""``python -m graphattn.env``: what a bug report needs, even where half of it is broken."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
from collections.abc import Iterator
from pathlib import Path

__all__ = ["main", "report"]

# Distribution -> module. Importing ogb starts a thread that asks the network for a newer release, so only
# its version is read.
_PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "numba": "numba",
    "numpy": "numpy",
    "scipy": "scipy",
    "torch-geometric": "torch_geometric",
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "jsonargparse": "jsonargparse",
    "ogb": None,
    "transformers": "transformers",
    "networkx": "networkx",
    "dgl": "dgl",
    "torch-scatter": "torch_scatter",
}

_VARIABLES = (
    "GRAPHATTN_DATA",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "TRITON_INTERPRET",
)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _package(distribution: str, module: str | None) -> str:
    """The version, ``not installed``, or the version and why the import fails."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = None
    if module is None:
        return version or "not installed"
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        if version is None and isinstance(error, ModuleNotFoundError) and error.name == module:
            return "not installed"
        return f"{version or 'unknown version'}, cannot be imported: {_one_line(error)}"
    return str(getattr(loaded, "__version__", version))


def _device() -> Iterator[str]:
    import torch

    yield f"torch: CUDA build {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "device: cpu"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"device: cuda:{index} {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"


def _backends() -> Iterator[str]:
    from graphattn.listing import list_backends

    for name, reason in list_backends().items():
        yield f"  {name:16s} {f'no: {reason}' if reason else 'runs'}"


def _guarded(lines: Iterator[str], what: str) -> Iterator[str]:
    try:
        yield from lines
    except Exception as error:
        yield f"{what}: {_one_line(error)}"


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def report() -> str:
    """The report as text: versions, device, cores, backends with the reason where one does not run."""
    os.environ.setdefault("DGLBACKEND", "pytorch")  # otherwise DGL writes a file into the home folder
    # Some packages print when they are imported.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        packages = {name: _package(name, module) for name, module in _PACKAGES.items()}
        device = list(_guarded(_device(), "device"))
        backends = list(_guarded(_backends(), "  cannot be listed"))
    lines = [
        f"graphattn {_package('graphattn', None)} in {Path(__file__).resolve().parent}",
        f"Python {platform.python_version()} on {platform.platform()}",
        f"cores: {_cores()}",
        *device,
        "packages:",
        *(f"  {name:16s} {version}" for name, version in packages.items()),
        "backends:",
        *backends,
        "environment:",
    ]
    for name in _VARIABLES:
        value = os.environ.get(name, "not set")
        if name == "GRAPHATTN_DATA" and name in os.environ and not Path(value).is_dir():
            value += " (no such folder)"
        lines.append(f"  {name:22s} {value}")
    return "\n".join(lines)


def main() -> None:
    """Print the report."""
    print(report())


if __name__ == "__main__":
    main()
