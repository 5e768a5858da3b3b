"""Whole runs of the command, on a user's own model and data."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from graphattn.cli import main
from graphattn.errors import CheckpointError, ConfigError, TrainingError
from graphattn.training import load_checkpoint, run
from graphattn.training.main import _write_predictions
from graphattn.training.results import Results, read_results

FOLDER = Path("runs/toy/seed_3")
Write = Callable[..., str]


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_leaves_everything_in_its_folder(write_config: Write, capsys: pytest.CaptureFixture[str]):
    results = run("fit", ["--config", write_config()])
    assert isinstance(results, Results)
    files = {"config.yaml", "curves.png", "metrics.csv", "results.json", "results.md", "versions.json"}
    assert {path.name for path in FOLDER.iterdir()} == files | {"checkpoints", "tensorboard"}
    assert sorted(path.name for path in (FOLDER / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (FOLDER / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((FOLDER / "config.yaml").read_text())["seed_everything"] == 3
    assert json.loads((FOLDER / "versions.json").read_text())["torch"] == torch.__version__

    table = rows(FOLDER)
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3"]
    assert {"lr", "step", "train/loss", "val/loss", "train/balanced_accuracy", "val/balanced_accuracy"} <= set(table[0])

    stored = read_results(FOLDER)
    assert stored == results and results.epochs == 4 and results.seed == 3 and results.parameters == 114
    best = max(range(4), key=lambda epoch: float(table[epoch]["val/balanced_accuracy"]))
    assert results.last.epoch == 4 and results.best.epoch == best + 1
    assert results.best.val["balanced_accuracy"] == pytest.approx(float(table[best]["val/balanced_accuracy"]))

    out = capsys.readouterr().out
    assert "last epoch" in out and "best validation" in out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 4 and "val/balanced_accuracy" in lines[0]  # no terminal: one line an epoch

    # The two checkpoints score what the table says.
    for name, figures in (("last", results.last), ("best", results.best)):
        again = run("test", ["--config", str(FOLDER / "config.yaml"), "--ckpt_path", name])
        assert again[0]["test/balanced_accuracy"] == pytest.approx(figures.test["balanced_accuracy"])  # type: ignore[index]
    validated = run("validate", ["--config", str(FOLDER / "config.yaml")])  # best by default
    assert validated[0]["val/balanced_accuracy"] == pytest.approx(results.best.val["balanced_accuracy"])  # type: ignore[index]
    run("predict", ["--config", str(FOLDER / "config.yaml")])
    with np.load(FOLDER / "predictions.npz") as file:
        assert file["prediction"].ndim == 2 and file["prediction"].shape[1] == 2
    assert rows(FOLDER) == table  # scoring does not touch the history


def test_two_at_once_do_not_share_a_folder(write_config: Write, monkeypatch: pytest.MonkeyPatch):
    """Both found the folder empty; the second one waited until the first had ended."""
    config = write_config(trainer__max_epochs=1)

    @contextmanager
    def after_another(folder: Path) -> Iterator[None]:
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("of the first")
        yield

    monkeypatch.setattr("graphattn.training.main.only_writer", after_another)
    with pytest.raises(ConfigError, match="another process has run in runs/toy/seed_3 meanwhile"):
        run("fit", ["--config", config])
    assert [path.name for path in FOLDER.iterdir()] == ["results.json"]


def test_a_root_that_cannot_be_written_is_told(write_config: Write, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot make the folder file/toy/seed_3 .*--run\.root"):
        run("fit", ["--config", write_config(), "--run.root=file"])


def test_averaged_weights_are_what_is_tested_and_kept(write_config: Write):
    """Lightning's callback loads the other weights of a checkpoint in the process that trained."""
    averaging = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.8}}
    config = write_config(trainer__callbacks=[averaging], trainer__max_epochs=3)
    results = run("fit", ["--config", config])
    assert isinstance(results, Results)
    kept = load_checkpoint(FOLDER / "checkpoints" / "last.ckpt")
    assert not same(kept["state_dict"], kept["current_model_state"])
    for name, figures in (("last", results.last), ("best", results.best)):
        again = run("test", ["--config", str(FOLDER / "config.yaml"), "--ckpt_path", name])
        assert again[0]["test/loss"] == figures.test["loss"]  # type: ignore[index]


def test_a_second_run_never_loses_the_first(write_config: Write, capsys: pytest.CaptureFixture[str]):
    config = write_config(trainer__max_epochs=1)
    run("fit", ["--config", config])
    first = weights(FOLDER)
    with pytest.raises(ConfigError, match="a finished run.*if_exists=resume.*if_exists=version"):
        run("fit", ["--config", config])
    run("fit", ["--config", config, "--run.if_exists=version"])
    run("fit", ["--config", config, "--run.if_exists=version"])
    assert {path.name for path in Path("runs/toy").iterdir()} == {"seed_3", "seed_3_v2", "seed_3_v3"}
    assert same(weights(Path("runs/toy/seed_3_v2")), first)  # same seed, same weights, bit for bit
    capsys.readouterr()
    stamp = (FOLDER / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    results = run("fit", ["--config", config, "--run.if_exists=resume"])
    assert results == read_results(FOLDER) and "finished already" in capsys.readouterr().out
    assert (FOLDER / "checkpoints" / "last.ckpt").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match=r"finished run of another configuration; differing: .*width"):
        run("fit", ["--config", config, "--run.if_exists=resume", "--model.model.width=4"])
    with pytest.raises(ConfigError, match="a finished run"):  # a checkpoint of another place starts a new run
        run("fit", ["--config", config, "--ckpt_path", "runs/toy/seed_3_v2/checkpoints/last.ckpt"])
    other = run("fit", ["--config", config, "--seed_everything=4"])
    assert isinstance(other, Results) and other.folder == "runs/toy/seed_4"
    assert not same(weights(Path("runs/toy/seed_4")), first)


@pytest.fixture
def die(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    def at(step: int, how: str) -> None:
        monkeypatch.setenv("TOY_DIE_AT", str(step))
        monkeypatch.setenv("TOY_SIGNAL", how)

    # A shell's background job starts with SIGINT ignored, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield at
    signal.signal(signal.SIGINT, before)


def test_killed_and_resumed_equals_uninterrupted(write_config: Write):
    """Dropout, noise from three generators, a plateau schedule and AdamW; killed in the third epoch."""
    config = write_config()
    environment = {
        **os.environ,
        "TOY_DIE_AT": "13",
        "TOY_SIGNAL": "SIGKILL",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "graphattn.cli", "fit", "--config", config]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (FOLDER / "results.json").exists() and len(rows(FOLDER)) == 2
    with pytest.raises(ConfigError, match="an unfinished run"):
        run("fit", ["--config", config])
    resumed = run("fit", ["--config", str(FOLDER / "config.yaml"), "--ckpt_path", "last"])
    whole = run("fit", ["--config", config, "--run.root=whole"])
    assert isinstance(resumed, Results) and isinstance(whole, Results)
    assert rows(FOLDER) == rows(Path("whole/toy/seed_3"))
    assert (resumed.last, resumed.best) == (whole.last, whole.best)
    for name in ("last", "best"):
        assert same(weights(FOLDER, name), weights(Path("whole/toy/seed_3"), name))
    assert [row["lr"] for row in rows(FOLDER)] == ["0.02", "0.02", "0.01", "0.005"]  # the schedule's state mattered


def test_ctrl_c_tells_how_to_go_on(
    write_config: Write,
    die: Callable[[int, str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    config = write_config(data__init_args__num_workers=1)  # workers start before the epoch is announced to the loader
    die(8, "SIGINT")
    assert main(["fit", "--config", config]) == 130
    err = capsys.readouterr().err
    assert "go on with: graphattn fit --config runs/toy/seed_3/config.yaml --ckpt_path last" in err
    monkeypatch.delenv("TOY_DIE_AT")
    assert main(["fit", "--config", config, "--ckpt_path", "auto"]) == 0
    run("fit", ["--config", config, "--run.root=whole"])
    assert rows(FOLDER) == rows(Path("whole/toy/seed_3")) and len(rows(FOLDER)) == 4


def test_a_longer_run_goes_on_from_a_finished_one(write_config: Write):
    run("fit", ["--config", write_config(trainer__max_epochs=2)])
    results = run("fit", ["--config", write_config(trainer__max_epochs=3), "--run.if_exists=resume"])
    assert isinstance(results, Results) and results.epochs == 3 and len(rows(FOLDER)) == 3


def test_how_a_session_began_is_not_what_is_scored_later(write_config: Write):
    """The kept configuration of a resumed run scores the best checkpoint, like that of any other."""
    run("fit", ["--config", write_config(trainer__max_epochs=2), "--run.if_exists=resume"])
    config = str(FOLDER / "config.yaml")
    assert yaml.safe_load(Path(config).read_text())["ckpt_path"] is None
    run("fit", ["--config", config, "--ckpt_path=last", "--trainer.max_epochs=3"])
    (FOLDER / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert run("test", ["--config", config])


def test_epochs_without_validation_have_no_figures_of_it(write_config: Write):
    config = write_config(trainer__max_epochs=4, trainer__check_val_every_n_epoch=3)
    results = run("fit", ["--config", config])
    assert [bool(row["val/loss"]) for row in rows(FOLDER)] == [False, False, True, False]
    assert isinstance(results, Results) and results.best.epoch == 3 and results.best.val and not results.last.val
    run("fit", ["--config", config, "--run.root=part", "--trainer.max_epochs=3"])
    run("fit", ["--config", config, "--run.root=part", "--run.if_exists=resume"])
    assert rows(Path("part/toy/seed_3")) == rows(FOLDER)


def test_nan_stops_with_the_last_good_checkpoint(write_config: Write, monkeypatch: pytest.MonkeyPatch):
    config = write_config()
    monkeypatch.setenv("TOY_NAN_AT", "8")  # second epoch of five steps
    with pytest.raises(
        TrainingError, match=r"at step 8 \(epoch 1\); the last good checkpoint is .*last.ckpt.*learning rate"
    ):
        run("fit", ["--config", config])
    assert load_checkpoint(FOLDER / "checkpoints" / "last.ckpt")["epoch"] == 0
    assert all(value.isfinite().all() for value in weights(FOLDER).values())
    monkeypatch.setenv("TOY_NAN_AT", "2")
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        run("fit", ["--config", config, "--run.name=other"])


def test_early_stopping_from_the_configuration(write_config: Write):
    stop = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "min_delta": 9, "patience": 2},
    }
    results = run("fit", ["--config", write_config(trainer__callbacks=[stop], trainer__max_epochs=9)])
    assert isinstance(results, Results) and results.epochs == 3 and results.max_epochs == 9


def test_fast_dev_run_leaves_nothing(write_config: Write):
    assert run("fit", ["--config", write_config(), "--trainer.fast_dev_run=true"]) is None
    assert not Path("runs").exists()


def test_checkpoints_that_are_missing_or_bad(write_config: Write):
    config = write_config(trainer__max_epochs=1)
    with pytest.raises(CheckpointError, match="no checkpoint .*last.ckpt.*train first"):
        run("fit", ["--config", config, "--ckpt_path", "last"])
    run("fit", ["--config", config])
    kept = (FOLDER / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match="does not fit Net"):
        run("fit", ["--config", config, "--ckpt_path=last", "--model.model.width=4", "--trainer.max_epochs=2"])
    assert (FOLDER / "config.yaml").read_text() == kept  # still the one of the checkpoints beside it
    last = FOLDER / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        run("test", ["--config", str(FOLDER / "config.yaml"), "--ckpt_path", "last"])
    with pytest.raises(CheckpointError, match="does not fit Net"):
        run("test", ["--config", str(FOLDER / "config.yaml"), "--ckpt_path", "best", "--model.model.width=4"])


def test_outputs_of_several_sizes_are_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="of several sizes"):
        _write_predictions([torch.zeros(2, 4, 5), torch.zeros(1, 4, 6)], tmp_path / "predictions.npz")
