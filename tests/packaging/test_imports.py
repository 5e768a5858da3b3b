"""Imports in a fresh interpreter: what `import graphattn` loads, and that it works without the optional."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEAVY = (
    "torch_geometric",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "matplotlib",
    "networkx",
    "numba",
    "triton",
    "ogb",
    "dgl",
    "pandas",
    "tensorboard",
    "jsonargparse",
)

PATHS = "import sys; sys.path[:0] = {paths!r}\n"

BLOCK = """
class Hide:
    # Hides some packages from a finder: they look as if they were not installed, to find_spec too.
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in {blocked!r}
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hide, sys.meta_path)
"""


def python(code: str, *, blocked: tuple[str, ...] = ()) -> str:
    """Run code in a new interpreter on this source tree; its standard output."""
    paths = [str(ROOT / "kernels"), str(ROOT / "datasets"), str(ROOT)]
    program = PATHS.format(paths=paths) + (BLOCK.format(blocked=blocked) if blocked else "") + code
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["graphattn", "graphattn_kernels", "graphattn_datasets"])
def test_import_loads_no_heavy_package(module: str) -> None:
    code = f"import {module}\nprint(' '.join(sorted(set({HEAVY!r}) & set(sys.modules))))"
    assert python(code).split() == []


ATTEND = """
import torch
import graphattn

graph = graphattn.TokenGraph.from_edge_index(torch.tensor([[0, 1, 2, 0], [1, 2, 0, 0]]), num_tokens=3)
q, k, v = (torch.randn(3, 2, 4, requires_grad=True) for _ in range(3))
out = graphattn.attend(graph, q, k, v)
out.sum().backward()
assert out.shape == (3, 2, 4) and torch.isfinite(q.grad).all()
print("done")
"""


@pytest.mark.parametrize(
    "blocked",
    [("triton",), ("numba", "llvmlite"), ("torch_geometric",), ("lightning", "pytorch_lightning")],
    ids=["triton", "numba", "pyg", "lightning"],
)
def test_attend_works_without(blocked: tuple[str, ...]) -> None:
    assert python(ATTEND, blocked=blocked).split() == ["done"]


def test_hidden_packages_look_as_if_not_installed() -> None:
    code = """
from importlib.util import find_spec
try:
    import numba.core
except ModuleNotFoundError as error:
    print(error.name, find_spec("numba"), find_spec("scipy") is not None)
"""
    assert python(code, blocked=("numba",)).split() == ["numba", "None", "True"]


def test_names_that_need_a_missing_package_say_how_to_get_it() -> None:
    code = """
from graphattn.errors import MissingPackageError
try:
    from graphattn.conv import TransformerConv
    TransformerConv(4, 4)
except MissingPackageError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    assert 'pip install "graphattn[pyg]"' in python(code, blocked=("torch_geometric",))


def test_command_line_help_does_not_import_torch() -> None:
    code = """
import sys
from graphattn.cli import main
sys.argv = ["graphattn", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("torch" in sys.modules)
"""
    text = python(code)
    assert "usage" in text.lower()
    assert text.split()[-1] == "False"
