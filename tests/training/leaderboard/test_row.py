"""The row against a computation by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from graphattn.errors import ConfigError
from graphattn.training.leaderboard.options import LeaderboardOptions, PublishedEntry, required_seeds
from graphattn.training.leaderboard.picture import plot_row
from graphattn.training.leaderboard.progress import read_standing
from graphattn.training.leaderboard.row import Row, Stat, make_row
from graphattn.training.results import Figures, Results

PUBLISHED = [
    PublishedEntry("low", "a paper, table 1", test=60.0, test_std=1.25),
    PublishedEntry("validation only", "a paper, table 2", validation=77.0),
    PublishedEntry("high", "a leaderboard", test=80.5, parameters=1234, external_data=True),
]


def results(folder: Path, seed: int, epoch: int, validation: float, test: float, **versions: Any) -> Results:
    """A run whose last epoch says something else than its best one."""
    place = folder / f"seed_{seed}"
    place.mkdir(parents=True)
    found = {"device": "NVIDIA X", "memory_gib": 80.0, "torch": "2.13", "ogb": "1.3.6", "commit": "abc", **versions}
    (place / "versions.json").write_text(json.dumps(found))
    last = Figures(9, {}, {"roc_auc": 1.0}, {"roc_auc": 2.0})
    best = Figures(epoch, {}, {"roc_auc": validation}, {"roc_auc": test, "other": 5.0})
    return Results("x", seed, "roc_auc", last, best, 9, 9, 90.0, 5_000, "NVIDIA X", "32-true", str(place))


def row(tmp_path: Path, tests: list[float], label: str = "ROC-AUC (%)", mode: str = "max", draft: str = "") -> Row:
    runs = [results(tmp_path, seed, seed + 3, test + 2, test) for seed, test in enumerate(tests)]
    options = LeaderboardOptions("ogbg-molhiv", "ours", published=PUBLISHED)
    return make_row(options, runs, label=label, mode=mode, draft=draft, command="graphattn leaderboard --seeds 3")


def test_mean_and_unbiased_deviation_at_the_best_validation_epoch(tmp_path: Path):
    found = row(tmp_path, [70.0, 74.0, 78.0])
    assert found.test == Stat(74.0, 4.0)  # (16 + 0 + 16) / (3 - 1) = 16; by n it would be 3.266
    assert found.validation == Stat(76.0, 4.0)
    assert [(s.seed, s.epoch, s.validation, s.test) for s in found.seeds] == [
        (0, 3, 72.0, 70.0),
        (1, 4, 76.0, 74.0),
        (2, 5, 80.0, 78.0),
    ]
    stored = json.loads(found.to_json())
    assert stored["evaluator"]["test"] == pytest.approx({"mean": 0.74, "std": 0.04})
    assert stored["parameters"] == 5000 and stored["hardware"] == ["NVIDIA X, 80 GiB"] and stored["draft"] == ""
    assert stored["versions"]["ogb"] == ["1.3.6"] and stored["command"] == "graphattn leaderboard --seeds 3"


def test_markdown_has_what_a_submission_asks_for(tmp_path: Path):
    lines = row(tmp_path, [70.0, 74.0, 78.0]).to_markdown().splitlines()
    assert lines[0] == "# ogbg-molhiv: ours"
    for line in (
        "| Test ROC-AUC (%) | 74.00 ± 4.00 |",
        "| Validation ROC-AUC (%) | 76.00 ± 4.00 |",
        "| In the evaluator's unit | test 0.7400 ± 0.0400, validation 0.7600 ± 0.0400 |",
        "| Seeds | 3: 0, 1, 2 |",
        "| Parameters | 5,000 |",
        "| External data | no |",
        "| Hardware | NVIDIA X, 80 GiB |",
        "| Versions | ogb 1.3.6, torch 2.13 |",
        "| Commit | abc |",
        "| Command | `graphattn leaderboard --seeds 3` |",
        "| 1 | 4 | 76.00 | 74.00 | 9 | 1.5 |",
    ):
        assert line in lines
    assert not any("DRAFT" in line for line in lines)
    start = next(n for n, line in enumerate(lines) if line.startswith("| method | test ROC-AUC (%) ↑"))
    names = [line.split("|")[1].strip() for line in lines[start + 2 : start + 6]]
    assert names == ["high", "**ours (this run)**", "low", "validation only"]
    assert "| low | 60.00 ± 1.25 | - | - | no | a paper, table 1 |" in lines
    assert "| high | 80.50 | - | 1,234 | yes | a leaderboard |" in lines


def test_a_draft_says_so_everywhere(tmp_path: Path):
    found = row(tmp_path, [70.0], draft="1 of 10 seeds")
    text = found.to_markdown()
    assert "**DRAFT, not a leaderboard row: 1 of 10 seeds.**" in text and "ours (this run, draft)" in text
    assert json.loads(found.to_json())["draft"] == "1 of 10 seeds"
    assert found.test == Stat(70.0, None) and "| Test ROC-AUC (%) | 70.00 |" in text


def test_errors_rank_upwards_and_keep_their_unit(tmp_path: Path):
    found = row(tmp_path, [0.5, 0.7], label="RMSE", mode="min")
    text = found.to_markdown()
    assert "| Test RMSE | 0.6000 ± 0.1414 |" in text and "evaluator's unit" not in text
    assert json.loads(found.to_json())["evaluator"]["test"]["mean"] == pytest.approx(0.6)
    assert text.index("**ours (this run)**") < text.index("| low |") < text.index("| high |")


def test_hidden_test_labels(tmp_path: Path):
    found = row(tmp_path, [math.nan, math.nan])
    assert found.test == Stat(None, None)
    assert json.loads(found.to_json())["seeds"][0]["test"] is None  # not NaN, which is no JSON
    assert "| Test ROC-AUC (%) | - |" in found.to_markdown()
    plot_row(found, tmp_path / "row.png")  # by validation
    assert not (tmp_path / "row.png").exists() or (tmp_path / "row.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_different_commits_and_machines_are_told(tmp_path: Path):
    runs = [results(tmp_path, 0, 1, 1.0, 1.0), results(tmp_path, 1, 1, 1.0, 1.0, commit="def", device="CPU")]
    options = LeaderboardOptions("ogbg-molhiv", "ours")
    text = make_row(options, runs, label="x", mode="max", draft="", command="").to_markdown()
    assert "| Commit | abc / def |" in text and "Not all seeds ran at one commit." in text
    assert "| Hardware | NVIDIA X, 80 GiB; CPU, 80 GiB |" in text


def test_a_metric_that_was_not_logged(tmp_path: Path):
    found = results(tmp_path, 4, 1, 1.0, 1.0)
    del found.best.test["roc_auc"]
    with pytest.raises(ConfigError, match="seed 4 logged no test/roc_auc, .*logged: test/other"):
        make_row(LeaderboardOptions("x", "y"), [found], label="x", mode="max", draft="", command="")


def test_picture(tmp_path: Path):
    plot_row(row(tmp_path, [70.0, 74.0], draft="2 of 10 seeds"), tmp_path / "row.png")
    assert (tmp_path / "row.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("dataset", "seeds"),
    [
        ("ogbg-molhiv", 10),
        ("ogbn_arxiv", 10),
        ("ogbl-ddi", 10),
        ("ogbn-papers100M", 3),
        ("PCQM4Mv2", 1),
        ("ogb-lsc-pcqm4mv2", 1),
        ("peptides-func", None),
        ("ogbx-thing", None),
    ],
)
def test_what_the_rules_ask_for(dataset: str, seeds: int | None):
    assert required_seeds(dataset) == seeds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LeaderboardOptions("peptides-func", "x"), "leaderboard.seeds is needed for 'peptides-func'"),
        (LeaderboardOptions("peptides-func", "x", seeds=0), "leaderboard.seeds is 0, but it must be at least 1"),
        (LeaderboardOptions("ogbg-molhiv", "x", seeds=4), "seeds is 4, but the rules of ogbg-molhiv ask for 10"),
        (LeaderboardOptions("ogbg-molhiv", "x", published=[PublishedEntry("y", " ", test=1)]), "'y' needs its source"),
        (LeaderboardOptions("ogbg-molhiv", "x", published=[PublishedEntry("y", "z")]), "needs a test or a validation"),
    ],
)
def test_wrong_sections(options: LeaderboardOptions, message: str):
    with pytest.raises(ConfigError, match=message):
        options.check()


def test_standing_of_a_run(tmp_path: Path):
    assert read_standing(tmp_path, "val/mae", "min").text(9, "val/mae") == "epoch 0/9"
    (tmp_path / "metrics.csv").write_text("epoch,val/mae\n0,3.0\n1,\n2,1.5\n3,2.0\n")
    assert read_standing(tmp_path, "val/mae", "min").text(9, "val/mae") == "epoch 4/9, best val/mae 1.5 (epoch 3)"
    assert read_standing(tmp_path, "val/mae", "max").text(None, "val/mae") == "epoch 4/?, best val/mae 3 (epoch 1)"
