from __future__ import annotations

from pathlib import Path

import pytest

from experiments import ablation
from graphattn.training.results import read_results

EXPERIMENTS = Path(ablation.__file__).parent


def test_table_of_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAPHATTN_CACHE", str(tmp_path / "cache"))
    tiny = ["--data.init_args.options={num_graphs: [3, 2, 2]}", "--trainer.max_epochs=1", "--model.model.layers=1"]
    call = ["--config", str(EXPERIMENTS / "pattern" / "small.yaml"), "--seeds", "1", "--", *tiny]
    assert ablation.main(call) == 0
    folder = Path("runs/pattern-small-ablation")
    table = (folder / "ablation.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith(("| edges", "| full graph"))]
    assert len(rows) == 4 and all("±" in row for row in rows)
    assert (folder / "ablation.png").read_bytes().startswith(b"\x89PNG")
    # The four runs are different models on different graphs.
    found = {path.parent.parent.name: read_results(path.parent) for path in folder.glob("*/seed_0/results.json")}
    assert set(found) == {"edges-LapPE", "edges-no_LapPE", "full_graph-LapPE", "full_graph-no_LapPE"}
    assert found["edges-LapPE"].parameters - found["edges-no_LapPE"].parameters == 32 * 3  # Linear(2 -> 32)
    losses = {name: results.last.test["loss"] for name, results in found.items()}
    assert len(set(losses.values())) == 4
    capsys.readouterr()
    assert ablation.main(call) == 0  # reads what is there
    assert capsys.readouterr().out.count("finished already") == 4


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        ablation.main(["--config", str(tmp_path / "missing.yaml")])
    assert "there is no file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        ablation.main(["--config", str(tmp_path / "missing.yaml"), "--", "--run.name=x"])
    assert "--run.name is set for each variant" in capsys.readouterr().err
