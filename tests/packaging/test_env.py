"""`python -m graphattn.env` answers whatever state the installation is in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_env(*first_on_path: Path, **variables: str) -> str:
    path = os.pathsep.join(map(str, [*first_on_path, ROOT, ROOT / "kernels", ROOT / "datasets"]))
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    command = [sys.executable, "-m", "graphattn.env"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def line(report: str, word: str) -> str:
    return next(text for text in report.splitlines() if text.split()[:1] == [word])


def test_reports_versions_backends_and_data(tmp_path: Path) -> None:
    import torch

    report = run_env(GRAPHATTN_DATA=str(tmp_path))
    assert line(report, "torch").split() == ["torch", torch.__version__]
    assert line(report, "Python").split()[1] == sys.version.split()[0]
    assert line(report, "reference").split() == ["reference", "runs"]
    assert line(report, "GRAPHATTN_DATA").split() == ["GRAPHATTN_DATA", str(tmp_path)]


def test_survives_broken_packages(tmp_path: Path) -> None:
    for name, error in [
        ("dgl", "FileNotFoundError('libgraphbolt\\nis not there')"),
        ("torch_scatter", "OSError('undefined symbol: _ZN')"),
        ("torch", "ImportError('libcudart.so.99')"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"print('noise')\nraise {error}\n")
    report = run_env(tmp_path, GRAPHATTN_DATA=str(tmp_path / "nowhere"))
    assert "FileNotFoundError: libgraphbolt is not there" in line(report, "dgl")
    assert "OSError: undefined symbol: _ZN" in line(report, "torch-scatter")
    assert "ImportError: libcudart.so.99" in line(report, "torch")
    assert "noise" not in report
    assert "no such folder" in line(report, "GRAPHATTN_DATA")
