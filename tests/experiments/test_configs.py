"""Every configuration in experiments/ parses, builds, and says what it claims."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from graphattn.training import run
from graphattn.training.lightning_cli import TrainingCLI

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
OWN_COMMANDS = {"llm_windows"}  # their configurations are not those of graphattn fit
CONFIGS = sorted(path for path in EXPERIMENTS.glob("*/*.yaml") if path.parent.name not in OWN_COMMANDS)
PUBLISHED_PARAMETERS = {
    "pattern/published": 522_982,
    "pattern/fast": 522_982,
    "cluster/published": 524_026,
    "cluster/fast": 524_026,
    "zinc/published": 588_929,
}


def name_of(path: Path) -> str:
    return path.relative_to(EXPERIMENTS).with_suffix("").as_posix()


def test_the_six_data_sets_have_a_small_configuration():
    small = {path.parent.name for path in CONFIGS if path.stem == "small"}
    assert small == {"pattern", "cluster", "zinc", "cora", "minesweeper", "peptides_func"}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_builds(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    cli = TrainingCLI("fit", ["--config", str(path), "--trainer.accelerator=cpu"])
    assert (
        cli.folder
        == Path("runs") / name_of(path).replace("/", "-").replace("_", "-") / f"seed_{cli.config.seed_everything}"
    )
    assert not cli.folder.exists()  # building leaves nothing behind
    if name_of(path) in PUBLISHED_PARAMETERS:
        count = sum(p.numel() for p in cli.model.model.parameters())
        assert count == PUBLISHED_PARAMETERS[name_of(path)]


@pytest.mark.parametrize("name", ["pattern/small", "cluster/fast"])
def test_runs_on_generated_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAPHATTN_CACHE", str(tmp_path / "cache"))
    small = ["--data.init_args.options={num_graphs: [4, 2, 2]}", "--data.init_args.num_workers=0"]
    small += ["--model.model.layers=2", "--trainer.fast_dev_run=2", "--trainer.accelerator=cpu"]
    assert run("fit", ["--config", str(EXPERIMENTS / f"{name}.yaml"), *small]) is None


def test_published_configurations_use_the_published_hyperparameters():
    """Table of official settings, so that a change of one is noticed."""
    expected = {"pattern": (26, 5e-4, 10, 2), "cluster": (32, 5e-4, 10, 10), "zinc": (128, 7e-4, 15, 8)}
    for name, (batch, rate, patience, k) in expected.items():
        config = yaml.safe_load((EXPERIMENTS / name / "published.yaml").read_text())
        task, data = config["model"]["init_args"], config["data"]["init_args"]
        assert data["batch_size"] == batch and data["pre_transform"]["init_args"]["k"] == k
        assert task["optimizer"] == {"class_path": "torch.optim.Adam", "init_args": {"lr": rate}}
        plateau = task["lr_scheduler"]["init_args"]
        assert plateau == {"monitor": "val/loss", "factor": 0.5, "patience": patience}
        assert task["stop_lr"] == 1e-6 and task["train_transform"]["init_args"] == {"per": "batch"}
        assert "dropout" not in " ".join(task["model"]["init_args"])
