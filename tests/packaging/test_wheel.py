"""The wheel holds three packages with their types and READMEs, and nothing else at its top level."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"graphattn": "graphattn", "graphattn_kernels": "kernels", "graphattn_datasets": "datasets"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("setuptools", minversion="77")
    # A copy, because a build writes build/ and *.egg-info into the source tree.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in PACKAGES.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    build = "import setuptools.build_meta as backend, sys; backend.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file_,) = out.glob("*.whl")
    return zipfile.ZipFile(file_)


def files(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_top_level_is_the_three_packages(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in files(wheel)} == set(PACKAGES)


def test_every_module_type_marker_and_readme_is_inside(wheel: zipfile.ZipFile) -> None:
    for package, folder in PACKAGES.items():
        source = ROOT / folder / package if folder != package else ROOT / folder
        expected = {
            f"{package}/{path.relative_to(source).as_posix()}"
            for pattern in ("*.py", "py.typed", "README.md")
            for path in source.rglob(pattern)
        }
        assert f"{package}/py.typed" in expected
        assert expected == {name for name in files(wheel) if name.startswith(f"{package}/")}


def test_metadata(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    lines = wheel.read(name).decode().partition("\n\n")[0].splitlines()
    needs = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    base = {need.partition(">")[0].strip() for need in needs if "extra ==" not in need}
    assert base == {"torch", "numpy", "scipy", "numba", "triton"}
    assert [need.partition(";")[0] for need in needs if "==" in need.partition(";")[0]] == ["dgl==1.1.3"]
    extras = {line.partition(": ")[2] for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == {"pyg", "train", "ogb", "hf", "lora", "nx", "dev", "all", "dgl", "images", "scatter"}
    assert "License-Expression: MIT" in lines
    scripts = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "graphattn = graphattn.cli:main" in scripts
