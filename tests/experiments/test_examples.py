"""Every example script runs from an installed wheel, outside the repository; the comparison of both sides is right."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

pytest.importorskip("torch_geometric")
pytest.importorskip("torchmetrics")

from experiments.examples import compare
from experiments.examples.paired import report, run
from experiments.examples.paired.cases import CASES, OURS, PYG, SIDES, Case, script
from graphattn.errors import DataError
from graphattn.testing import require_or_skip
from graphattn_kernels import backends

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "examples"
FAKE = ["--dataset", "fake"]

# Script and arguments -> what its output must hold.
CALLS: dict[tuple[str, ...], str] = {
    ("cora.py", *FAKE, "--epochs", "2"): r"Test accuracy .*: [\d.]+ %",
    ("cora.py", *FAKE, "--epochs", "1", "--conv", "transformer"): r"Test accuracy .*: [\d.]+ %",
    ("minesweeper.py", "--dataset", "generated", "--rows", "10", "--epochs", "2"): r"Test ROC-AUC .*: [\d.]+ %",
    ("zinc.py", *FAKE, "--epochs", "2", "--layers", "2"): r"Test MAE .*: [\d.]+",
    ("zinc.py", *FAKE, "--epochs", "1", "--layers", "1", "--conv", "transformer"): r"Test MAE .*: [\d.]+",
    ("hetero.py", *FAKE, "--epochs", "2"): r"Test accuracy .*: [\d.]+ %",
    ("hetero.py", *FAKE, "--epochs", "1", "--conv", "transformer"): r"Test accuracy .*: [\d.]+ %",
    ("neighbor_sampling.py", *FAKE, "--epochs", "2"): r"Test ROC-AUC .*: [\d.]+ %",
    ("explain.py", *FAKE, "--epochs", "2", "--explainer_epochs", "3", "--picture", "a.png"): r"reads node \d+: 0\.\d+",
    ("explain.py", *FAKE, "--epochs", "1", "--algorithm", "attention", "--picture", "b.png"): r"unfaithfulness: 0\.\d+",
    ("dgl_gat.py", *FAKE, "--epochs", "2"): r"Test accuracy .*: [\d.]+ %",
    ("token_graphs.py", "--tokens", "25", "--picture", "c.png"): r"Longformer +\d+ edges",
}
PICTURES = ("a.png", "b.png", "c.png")

# One process runs them all, because importing torch and PyG takes longer than any of them; by the gather backend,
# because Numba would compile for minutes what its own tests look at.
DRIVER = """
import contextlib, io, json, runpy, sys, traceback
import graphattn, graphattn_datasets, graphattn_kernels.backends as backends
backends._HAS_NUMBA = False
results = []
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    out, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(script, run_name="__main__")
    except BaseException:
        error = traceback.format_exc()
    results.append({"out": out.getvalue(), "error": error})
files = [graphattn.__file__, graphattn_datasets.__file__, backends.__file__]
print(json.dumps({"files": files, "results": results}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the built and installed wheel."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pip")
    source, out, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "site"))
    for folder in ("graphattn", "kernels", "datasets"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    build = "import setuptools.build_meta as backend, sys; backend.build_wheel(sys.argv[1])"
    run_(["-c", build, str(out)], cwd=source)
    (wheel,) = out.glob("*.whl")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile"]
    run_(["-m", "pip", "install", *quiet, "--no-deps", "--no-index", "--target", str(target), str(wheel)], cwd=out)
    return target


@pytest.fixture(scope="module")
def outcomes(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], Any]]:
    """What each call printed, and where."""
    place = tmp_path_factory.mktemp("elsewhere")
    for name in {name for name, *_ in CALLS}:
        shutil.copy(FOLDER / name, place / name)
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    env.update(GRAPHATTN_CACHE=str(place / "cache"), PYTHONNOUSERSITE="1", CUDA_VISIBLE_DEVICES="")
    env.pop("GRAPHATTN_DATA", None)
    answer = json.loads(run_(["-c", DRIVER, json.dumps(list(CALLS))], cwd=place, env=env).splitlines()[-1])
    assert all(Path(file).is_relative_to(installed) for file in answer["files"]), answer["files"]
    return place, dict(zip(CALLS, answer["results"], strict=True))


def run_(arguments: list[str], **options: Any) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_script_is_called_here():
    scripts = {path.name for path in FOLDER.glob("*.py")} - {"compare.py"}
    assert scripts == {name for name, *_ in CALLS}


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_script_runs_from_an_installed_wheel(call: tuple[str, ...], outcomes):
    if call[0].startswith("dgl"):
        require_or_skip("dgl")
    place, results = outcomes
    found = results[call]
    assert found["error"] is None, found["error"]
    assert re.search(CALLS[call], found["out"]), found["out"]
    losses = [float(number) for number in re.findall(r"(?:Loss|Train): (\S+?),", found["out"])]
    assert all(map(math.isfinite, losses))
    for name in PICTURES:
        assert name not in call or (place / name).read_bytes().startswith(b"\x89PNG")


# --- the comparison ---------------------------------------------------------------------------------------------------


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("file", sorted({case.file for case in CASES}))
def test_one_line_decides_whose_layers_a_script_has(file: str):
    modules = {side: script(file, side) for side in SIDES}
    names = [name for name in vars(modules[OURS]) if name.endswith("Conv")]
    ours = [name for name in names if getattr(modules[OURS], name).__module__.startswith("graphattn.conv")]
    assert ours
    for name in ours:
        assert getattr(modules[PYG], name).__module__.startswith("torch_geometric.nn")


def test_a_script_without_that_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match="exactly one line"):
        script(str(tmp_path / "none.py"), PYG)


def test_paired_interval_is_that_of_the_t_test():
    ours, theirs = [81.0, 82.5, 80.9], [80.0, 82.0, 81.4]
    found = report.paired_difference(ours, theirs)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.mean == pytest.approx((low + high) / 2) and found.half == pytest.approx((high - low) / 2)
    assert math.isnan(report.paired_difference([1.0], [2.0]).half)


def test_comparison_of_all_cases(quickly, tmp_path: Path, capsys: pytest.CaptureFixture, titles: dict[str, str]):
    call = ["--device", "cpu", "--quick", "--synthetic", "--seeds", "2", "--no-memory", "--out", str(tmp_path)]
    assert compare.main(call) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    assert [pair["case"] for pair in found["pairs"]] == [case.name for case in CASES] and not found["skipped"]
    for pair in found["pairs"]:
        # The same function with the same parameters, and two seeds of each.
        assert pair["loss_difference"] < 1e-5 and pair["gradient_difference"] < 1e-4
        assert len(pair["scores"][PYG]) == len(pair["scores"][OURS]) == 2
        gaps = [mine - other for mine, other in zip(pair["scores"][OURS], pair["scores"][PYG], strict=True)]
        assert pair["difference"]["mean"] == pytest.approx(sum(gaps) / 2)
        assert pair["ms"][OURS]["median"] > 0 and pair["ms"][PYG]["repetitions"] >= 5
    table = (tmp_path / "compare.md").read_text()
    assert all(f"| {case.name} | {case.metric}" in table for case in CASES)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "--quick --synthetic" in found["environment"]["command"]
    assert table.startswith("# QUICK RUN, no results: One import swapped\n")
    assert titles["compare.png"].startswith("QUICK RUN, no results: ")
    report.write(tmp_path, [], {}, {**found["environment"], "length": "short"})
    assert (tmp_path / "compare.md").read_text().startswith("# One import swapped\n")


def test_time_and_memory_alone(quickly, tmp_path: Path):
    call = ["--device", "cpu", "--quick", "--synthetic", "--seeds", "0", "--no-memory", "--out", str(tmp_path)]
    assert compare.main([*call, CASES[0].name]) == 0
    (pair,) = json.loads((tmp_path / "compare.json").read_text())["pairs"]
    assert not pair["scores"] and pair["difference"]["mean"] is None and pair["ms"][OURS]["median"] > 0
    row = next(x for x in (tmp_path / "compare.md").read_text().splitlines() if x.startswith(f"| {CASES[0].name} |"))
    assert row.split("|")[3:6] == ["  ", "  ", "  "] and row.count("(") == 2
    assert (tmp_path / "compare.png").is_file()


def in_double(batch: Any) -> Any:
    return batch.clone().apply(lambda x: x.double() if x.is_floating_point() else x)


# Not on Cora, whose attention dropout draws from another stream than PyG's.
@pytest.mark.parametrize("case", [case for case in CASES if case.file != "cora.py"], ids=lambda case: case.name)
def test_training_is_the_same_in_float64(case: Case, quickly):
    scripts = {side: script(case.file, side) for side in SIDES}
    args = scripts[OURS].parse(case.arguments("cpu", "quick", synthetic=True))
    torch.manual_seed(0)
    data = scripts[OURS].load(args)
    batches = [in_double(batch) for batch in (list(data[0]) if case.batches else [data])]
    models = run.twins(scripts, args, data, 0)
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    for side, model in models.items():
        model.double().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
        torch.manual_seed(0)
        for step in range(6):
            optimizer.zero_grad()
            loss = scripts[side].loss_of(model, batches[step % len(batches)])
            loss.backward()
            optimizer.step()
            losses[side].append(loss.item())
    assert losses[OURS] == pytest.approx(losses[PYG], rel=1e-9)
    assert len(set(losses[OURS])) == 6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident peaks are read from Linux's /proc")
def test_memory_of_one_side(quickly, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "argv", ["run", "minesweeper", PYG, "--synthetic"])
    run._main()
    assert 0 <= float(capsys.readouterr().out) < 1000


def test_missing_data_are_skipped_with_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def absent(*_: Any) -> None:
        raise DataError("Cora(): raw files are missing\n  from: somewhere")

    monkeypatch.setattr(compare, "run_case", absent)
    assert compare.main(["--device", "cpu", "--out", str(tmp_path), CASES[0].name]) == 1
    assert f"* {CASES[0].name} skipped: Cora(): raw files are missing" in (tmp_path / "compare.md").read_text()


@pytest.mark.parametrize("wrong, message", [(["citeseer"], "there is no example"), (["--seeds", "-1"], "--seeds")])
def test_wrong_arguments(wrong: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        compare.main(wrong)
    assert message in capsys.readouterr().err
