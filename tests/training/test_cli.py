from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graphattn
from graphattn.cli import main

Write = Callable[..., str]


def test_help_and_version_answer_without_torch():
    code = (
        "import sys\n"
        "from graphattn.cli import main\n"
        "assert main(['--help']) == 0 and main(['--version']) == 0 and main(['nonsense']) == 2\n"
        "heavy = {'torch', 'lightning', 'torch_geometric', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "graphattn fit --config" in done.stdout and graphattn.__version__ in done.stdout
    assert "invalid choice: 'nonsense'" in done.stderr


@pytest.mark.parametrize(
    ("what", "expected"),
    [("models", "graph_transformer"), ("datasets", "pattern"), ("mechanisms", "graph_transformer")],
)
def test_lists(what: str, expected: str, capsys: pytest.CaptureFixture[str]):
    assert main(["list", what]) == 0
    assert expected in capsys.readouterr().out.splitlines()


def test_list_of_backends_says_which_run(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "backends"]) == 0
    assert any(line.split() == ["reference", "runs"] for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("changes", "overrides", "expected"),
    [
        ({"modle": 1}, [], "'modle' is not accepted. Did you mean 'model'?"),
        ({"trainer__max_epoch": 1}, [], "'max_epoch'. Did you mean 'max_epochs'"),
        ({"model__class_path": "graphattn.training.NodeClasification"}, [], "Did you mean 'NodeClassification'"),
        (
            {"model__init_args__model__class_path": "toy.Nett"},
            [],
            "toy.Nett: module 'toy' has no attribute 'Nett'. Did you mean 'Net'?",
        ),
        ({"model__init_args__model__class_path": "nowhere.Net"}, [], "nowhere.Net: No module named 'nowhere'"),
        (
            {"model__init_args__model__init_args": {"widht": 3}},
            [],
            "toy.Net: Option 'widht' is not accepted. Did you mean 'width'?",
        ),
        (
            {"model__init_args__model__init_args": {"width": "wide"}},
            [],
            "toy.Net > width: Expected a <class 'int'>. Got value: wide",
        ),
        ({"data__init_args__batchsize": 3}, [], "Did you mean 'batch_size'"),
        ({}, ["--trainer.max_epoch=3"], "Did you mean 'trainer.max_epochs'"),
        ({}, ["--config", "missing.yaml"], "File does not exist"),
        ({"seed_everything": -1}, [], "seed_everything must be a whole number from 0 to 4294967295, got -1"),
        ({}, ["--seed_everything=false"], "seed_everything must be a whole number from 0 to 4294967295, got False"),
    ],
)
def test_a_wrong_configuration_is_one_message_and_code_2(
    changes: dict[str, Any],
    overrides: list[str],
    expected: str,
    write_config: Write,
    capsys: pytest.CaptureFixture[str],
):
    assert main(["fit", "--config", write_config(**changes), *overrides]) == 2
    err = capsys.readouterr().err
    assert err.startswith("graphattn: error: configuration: ") and expected in err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["fit", "leaderboard"])
def test_what_a_constructor_says_of_its_arguments_is_one_message_and_code_2(
    command: str, write_config: Write, capsys: pytest.CaptureFixture[str]
):
    options = {"out_channels": 2, "in_vocab": 3, "width": 3}
    net = {"class_path": "graphattn.models.graph.GraphTransformer", "init_args": options}
    config = write_config(model__init_args__model=net)
    assert main([command, "--config", config]) == 2
    assert capsys.readouterr().err.startswith("graphattn: error: width must be a positive multiple of heads")


def test_what_a_constructor_in_a_list_says_is_one_message_too(write_config: Write, capsys: pytest.CaptureFixture[str]):
    transform = {"class_path": "graphattn.encoding.AddLaplacianPE", "init_args": {"k": 0}}
    options = {"name": "pattern", "pre_transform": [transform]}
    config = write_config(data={"class_path": "graphattn.training.GraphDataModule", "init_args": options})
    assert main(["fit", "--config", config]) == 2
    assert capsys.readouterr().err == "graphattn: error: configuration: k must be at least 1, got 0\n"


def test_a_null_that_the_parser_loses_is_explained(write_config: Write, capsys: pytest.CaptureFixture[str]):
    # jsonargparse hands "None", a string, to an optional argument two classes deep.
    config = write_config(model__init_args__model={"class_path": "toy.Net", "init_args": {"seed": 1}})
    assert main(["fit", "--config", config, "--model.model.seed=null"]) == 2
    assert "write it in a second --config file" in capsys.readouterr().err


def test_yaml_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "was_here"
    (tmp_path / "evil.yaml").write_text(f"seed_everything: !!python/object/apply:os.mkdir ['{target}']\n")
    assert main(["fit", "--config", str(tmp_path / "evil.yaml")]) == 2
    assert "configuration" in capsys.readouterr().err and not target.exists()


def test_traceback_on_request_only(write_config: Write, capsys: pytest.CaptureFixture[str]):
    assert main(["fit", "--debug", "--config", write_config(modle=1)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(write_config: Write, monkeypatch: pytest.MonkeyPatch):
    import toy

    monkeypatch.setattr(toy, "make_graphs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["fit", "--config", write_config()])


def test_trainer_options_that_contradict_each_other(write_config: Write, capsys: pytest.CaptureFixture[str]):
    config = write_config()
    assert main(["fit", "--config", config, "--trainer.val_check_interval=-0.5"]) == 2
    assert "graphattn: error:" in capsys.readouterr().err


def test_a_missing_package_names_the_extra(
    write_config: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "lightning", None)
    assert main(["fit", "--config", write_config()]) == 2
    assert 'pip install "graphattn[train]"' in capsys.readouterr().err
