from __future__ import annotations

import subprocess
import sys

import pytest

from graphattn.cli import main
from graphattn.errors import ArgumentError
from graphattn.training.leaderboard.arguments import parse_arguments, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("1", [0]), ("0,1,2", [0, 1, 2]), ("7, 3", [7, 3]), ("7,", [7])]
)
def test_seeds(text: str, seeds: list[int]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "must be how many .* or a list .*, got '0'"),
        (",", "must be how many"),
        ("", "must be how many"),
        ("0,1,0,1,2", "must not repeat a seed, got 0, 1 more than once"),
        ("three", "whole numbers from 0 up, got 'three'"),
        ("1,-2", "whole numbers from 0 up"),
        ("1.5", "whole numbers from 0 up"),
        ("4294967296,", "at most 4294967295"),
    ],
)
def test_wrong_seeds(text: str, message: str):
    with pytest.raises(ArgumentError, match=message):
        parse_seeds(text)


def test_what_it_does_not_know_goes_to_fit():
    arguments = parse_arguments(
        ["--config", "a.yaml", "-c", "b.yaml", "--seeds", "2", "--parallel=3", "--trainer.max_epochs", "5", "--draft"]
    )
    assert arguments.fit == ["--config", "a.yaml", "--config", "b.yaml", "--trainer.max_epochs", "5"]
    assert (arguments.seeds, arguments.parallel, arguments.draft, arguments.check) == ([0, 1], 3, True, False)


def test_wrong_arguments_have_code_2(capsys: pytest.CaptureFixture[str]):
    assert main(["leaderboard"]) == 2
    assert "required: -c/--config" in capsys.readouterr().err
    assert main(["leaderboard", "--config", "x.yaml", "--parallel", "0"]) == 2
    assert "--parallel must be at least 1, got 0" in capsys.readouterr().err
    assert main(["leaderboard", "--config", "x.yaml", "--seed_everything=3"]) == 2
    assert "set for each run by --seeds" in capsys.readouterr().err


def test_arguments_and_rows_need_no_lightning():
    code = (
        "import sys\n"
        "from graphattn.training.leaderboard.arguments import parse_arguments\n"
        "from graphattn.training.leaderboard.row import make_row\n"
        "heavy = {'lightning', 'torch_geometric', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
