"""The benchmark of windows, on small prompts on the CPU: its results are right, and its files hold them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import windows
from graphattn import patterns


def test_prompts_of_the_benchmark() -> None:
    shape = windows.Shape(3, 640, 2, 8, 3)
    for padded in (False, True):
        graph = patterns.graph_window(**windows.make_prompts(shape, "cpu", padded=padded), hops=2)
        assert graph.rows.shape[1] == 13 and graph.padding == ("left" if padded else "none")
        assert bool((graph.rows < 640).all()) and len(graph.rows[1].unique()) == 13


def test_it_checks_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_time", lambda run: (run(), (1.0, 1.0, 1.0))[1])
    assert windows.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "windows.json").read_text())
    rows = {(row["peer"], row["what"]): row for row in found["rows"]}
    assert rows["ours", "forward"]["error"] < 1e-5 and rows["ours, left padding", "forward"]["error"] < 1e-5
    assert len(found["goals"]) == 7 and (tmp_path / "windows.csv").is_file() and (tmp_path / "windows.md").is_file()
    real = windows._sdpa
    monkeypatch.setattr(windows, "_sdpa", lambda *x, **options: real(*x, **options) * torch.tensor(1.1))
    monkeypatch.setattr(windows, "_model", lambda *_: iter(()))
    assert windows.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
