"""The comparison of Sparsifiner with other sparse graphs: costs that match, and digits all the way to the picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from experiments.sparsifiner import compare, stages
from experiments.sparsifiner.table import markdown
from experiments.sparsifiner.variants import BUDGETS, KEEPS, KINDS, variants_of
from graphattn.testing import require_or_skip
from graphattn_kernels import backends

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "sparsifiner"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
QUICK = {"img_size": 8, "patch_size": 1, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}


def test_every_configuration_has_a_budget() -> None:
    assert {path.stem for path in CONFIGS} == set(BUDGETS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_token_pruning_costs_what_sparsifiner_costs_and_baselines_read_as_much(path: Path) -> None:
    network = yaml.safe_load(path.read_text())["model"]["init_args"]["model"]["init_args"]
    variants = {v.name: v for v in variants_of(network)}
    assert {v.kind for v in variants.values()} == {"dense", *KINDS}
    for keep in KEEPS:
        ours, pruned = variants[f"sparsifiner-{keep}"], variants[f"token-pruning-{keep}"]
        assert pruned.token_keep is not None
        assert 0.93 * ours.attention < pruned.attention <= ours.attention < variants["dense"].attention
        assert pruned.network < ours.network
        fixed = [variants[f"{kind}-{keep}"] for kind in ("oracle", "window", "random")]
        assert len({v.attention for v in fixed}) == 1 and fixed[0].attention < ours.attention
        assert all(v.options["keep"] == keep for v in (ours, *fixed))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_windows_and_random_graphs_of_equal_cost(path: Path) -> None:
    """At the attention cost of Sparsifiner, predictor included: one more key would cost more."""
    network = yaml.safe_load(path.read_text())["model"]["init_args"]["model"]["init_args"]
    variants = {v.name: v for v in variants_of(network)}
    n, width, depth = 1 + (network["img_size"] // network["patch_size"]) ** 2, network["embed_dim"], network["depth"]
    for keep in KEEPS:
        ours = variants[f"sparsifiner-{keep}"]
        for selector in ("window", "random"):
            equal, same_degree = variants[f"{selector}-equal-macs-{keep}"], variants[f"{selector}-{keep}"]
            keys = equal.options["keys"]
            assert equal.options == {"selector": selector, "keys": keys} and equal.reads == f"{keys} of {n}"
            assert keys > keep * n and same_degree.network < equal.network <= ours.network
            # The class token reads all n, the others their keys; scores and values cost the width each.
            assert equal.attention == 2 * width * depth * (n + (n - 1) * keys)
            assert equal.attention <= ours.attention < equal.attention + 2 * width * depth * (n - 1)
            assert equal.attention > 0.99 * ours.attention


def test_the_table_takes_differences_by_seed() -> None:
    config = yaml.safe_load((FOLDER / "digits.yaml").read_text())
    variants = [v for v in variants_of(config["model"]["init_args"]["model"]["init_args"]) if v.keep in (1.0, 0.1)]
    layers = [{"layer": "a", "keys": 7, "recall": 0.5, "retained": 0.6, "best": 0.7}] * 3

    def figures(*values: float) -> list[dict]:
        return [{"accuracy": v, "before": v - 10, "device": "cpu", "quality": layers} for v in values]

    found = {v.name: figures(80.0, 82.0, 84.0) for v in variants}
    found["oracle-0.1"] = figures(81.0, 84.0, 87.0)
    for name in ("teacher", "sparsifiner", "sparsifiner-free", "sparsifiner-parity"):
        found[name] = [{"accuracy": 90.0, "device": "cpu", "quality": {f"{name}-0.1": layers}}] * 3
    text = markdown(config, found, variants)
    # Differences 1, 2, 3: mean 2, deviation 1, t = 4.303 at two degrees of freedom.
    assert "| 71.00 ± 3.00" not in text and "74.00 ± 3.00 | 84.00 ± 3.00 | +2.00 [-0.48, +4.48] | 0.600 |" in text
    assert "| window-0.1 |" in text and "+0.00 [+0.00, +0.00]" in text
    assert "| sparsifiner-free-0.1 | 0.500 (0.600 / 0.700) |" in text


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_digits_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, titles: dict[str, str]
) -> None:
    require_or_skip("train")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")

    def in_this_process(jobs: list, parallel: int) -> list:
        for job in jobs:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            assert stages.main(job.command[3:]) == 0
        return []

    monkeypatch.setattr(backends, "_HAS_NUMBA", False)
    monkeypatch.setattr(compare, "run_jobs", in_this_process)
    kinds = ["sparsifiner", "oracle", "window", "window-equal-macs", "random-equal-macs", "token-pruning"]
    call = ["--config", str(FOLDER / "digits.yaml"), "--out", str(tmp_path), "--seeds", "1", "--quick", "--keep", "0.1"]
    call += ["--kinds", *kinds]
    assert compare.main(call) == 0
    text = (tmp_path / "compare.md").read_text()
    names = ["dense", *(f"{kind}-0.1" for kind in kinds)]
    assert all(f"| {name} |" in text for name in names)
    figures = json.loads((tmp_path / "compare.json").read_text())["figures"]
    assert all(0.0 <= one["accuracy"] <= 100.0 for name in names for one in figures[name])
    quality = {name: figures[name][0]["quality"] for name in ("sparsifiner-0.1", "oracle-0.1", "window-0.1")}
    assert all(layer["recall"] == 1.0 for layer in quality["oracle-0.1"])
    assert all(layer["keys"] == 7.0 for layers in quality.values() for layer in layers)  # 0.1 of 65, rounded up
    equal = [v for v in variants_of(QUICK) if v.name in ("window-equal-macs-0.1", "random-equal-macs-0.1")]
    for v in equal:
        assert all(layer["keys"] == v.options["keys"] > 7 for layer in figures[v.name][0]["quality"])
        assert f"| {v.name} | {v.options['keys']} of 65 |" in text
    rows = list(csv.DictReader((tmp_path / "compare.csv").open()))
    assert [row["name"] for row in rows] == names
    for name in ("compare", "graphs"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert text.startswith("# QUICK RUN, no results: Sparsifiner on ") and "Stage 1: 1 epochs, stage 2: 1 " in text
    assert len(titles) == 2 and all(title.startswith("QUICK RUN, no results: ") for title in titles.values())

    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    monkeypatch.setattr(compare, "run_jobs", lambda jobs, parallel: [] if not jobs else pytest.fail("done again"))
    assert compare.main(call) == 0
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--config", "nothing.yaml"])
    capsys.readouterr()
