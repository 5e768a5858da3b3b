"""The benchmark of votes and components: it finds wrong results, and says whether goals are met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import connectivity


def test_the_cpus_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert connectivity.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "connectivity.json").read_text())
    assert {row["case"] for row in content["rows"]} == set(connectivity.KINDS)
    assert all(row["ms"] > 0 and row["beside_ms"] > 0 for row in content["rows"])
    assert capsys.readouterr().out.strip() == (tmp_path / "connectivity.md").read_text().strip()


def test_a_wrong_result_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = connectivity.connected_components
    monkeypatch.setattr(connectivity, "connected_components", lambda x: (right(x)[0], right(x)[1] + 1))
    assert connectivity.main(["--device", "cpu", "--quick"]) == 1
    assert "found, SciPy has" in capsys.readouterr().err
    monkeypatch.setattr(
        connectivity, "agreed_edges", lambda x, **_: torch.zeros(1, 5, 5, dtype=torch.uint8) + (len(_) > 0)
    )
    with pytest.raises(RuntimeError, match="agreed edges"):
        connectivity._check_votes(torch.randn(1, 8, 5, 5))


def test_goals() -> None:
    below = connectivity.Row("gradient", "float32", 3.0, "copy", 2.0, "<= 1.5")
    assert below.ratio == 1.5 and below.met
    assert not below._replace(ms=3.1).met
    above = connectivity.Row("components", "blobs", 2.0, "host", 20.0, ">= 10")
    assert above.ratio == 10 and above.met and not above._replace(ms=2.1).met
    assert below._replace(goal="").met is None
    table = connectivity.markdown([below, above._replace(ms=4.0)])
    assert "| 1.50 | <= 1.5: yes |" in table and "| 5.00 | >= 10: **no** |" in table


@pytest.mark.gpu
def test_the_gpus_part(tmp_path: Path) -> None:
    assert connectivity.main(["--device", "cuda", "--quick", "--out", str(tmp_path)]) == 0
