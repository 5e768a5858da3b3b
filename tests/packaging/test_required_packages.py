"""What conftest.py gives: GRAPHATTN_REQUIRE turns skips into failures; seeds; NaN-filled allocations."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from graphattn.testing import require_or_skip

ROOT = Path(__file__).resolve().parents[2]

FILES = {
    "test_one.py": """
        import pytest
        from graphattn.testing import require_or_skip

        def test_helper(): require_or_skip("scatter")
        def test_import(): pytest.importorskip("torch_scatter")
        @pytest.mark.requires("scatter")
        def test_marker(): pass
        def test_data(): pytest.skip("no torch-scatter tables under GRAPHATTN_DATA")
        def test_other(): pytest.skip("not on Tuesdays")
        def test_passes(): pass
    """,
    "test_two.py": """
        import pytest
        pytest.importorskip("torch_scatter")
        def test_never(): assert False
    """,
}


def run(folder: Path, require: str) -> str:
    # Blocks torch_scatter, so that the outcome does not depend on what is installed.
    (folder / "conftest.py").write_text(
        (ROOT / "tests" / "conftest.py").read_text() + "\nimport sys\nsys.modules['torch_scatter'] = None\n"
    )
    for name, text in FILES.items():
        (folder / name).write_text("\n".join(line[8:] for line in text.splitlines()))
    environment = {**os.environ, "GRAPHATTN_REQUIRE": require}
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    command += ["-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "--continue-on-collection-errors"]
    command += [str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT).stdout


def test_without_the_variable_they_are_skips(tmp_path: Path) -> None:
    out = run(tmp_path, "")
    assert "1 passed, 6 skipped" in out, out
    assert "skipped tests: 6 (packages that may not be missing: none)" in out


def test_with_the_variable_they_are_failures(tmp_path: Path) -> None:
    out = run(tmp_path, "pyg,scatter")
    # Missing data and other reasons stay skips. Failures before the test's body (the marker's, and those of
    # a module that skips itself) are errors in pytest's words.
    assert "2 failed, 1 passed, 2 skipped, 2 errors" in out, out
    assert "GRAPHATTN_REQUIRE lists" in out
    assert "skipped tests: 2 (packages that may not be missing: pyg, scatter)" in out


def test_helper_with_a_broken_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert require_or_skip("torch") is torch
    (tmp_path / "broken_package.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GRAPHATTN_REQUIRE", "")
    with pytest.raises(pytest.skip.Exception, match="OSError: undefined symbol"):
        require_or_skip("broken_package")
    monkeypatch.setenv("GRAPHATTN_REQUIRE", "pyg, broken_package")
    with pytest.raises(pytest.fail.Exception, match="GRAPHATTN_REQUIRE lists it"):
        require_or_skip("broken_package")


draws: list[tuple[float, float, float]] = []


@pytest.mark.parametrize("_", range(2))
def test_every_test_has_the_same_seeds(_: int) -> None:
    draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert len(set(draws)) == 1
    random.seed(1)  # what a test does to the state does not reach the next one
    np.random.seed(1)
    torch.manual_seed(1)


def test_nan_filled_allocations(nan_filled_allocations: None) -> None:
    assert torch.empty(1000).isnan().all()
    assert torch.empty_like(torch.zeros(1000)).isnan().all()
    assert torch.zeros(1000).new_empty(10).isnan().all()


def test_allocations_are_as_before_without_the_fixture() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
