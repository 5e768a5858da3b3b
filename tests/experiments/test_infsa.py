"""The comparison of attentions: every variant of every configuration builds, and digits runs to its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from experiments import parallel
from experiments.images import evenly
from experiments.infsa import compare, look, runs, table
from experiments.infsa.variants import BASELINES, variants_of, with_variant
from graphattn.training.results import Figures, Results
from graphattn_kernels import backends

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "infsa"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_variants_differ_in_their_attention_only() -> None:
    for path in CONFIGS:
        config = yaml.safe_load(path.read_text())
        variants = variants_of(config)
        assert next(iter(variants)) in BASELINES
        network = config["model"]["init_args"]["model"]["init_args"]
        assert next(iter(variants.values())).items() <= network.items()  # the file itself is the baseline
        for variant in variants.values():
            changed = with_variant(config, variant)
            mine = changed["model"]["init_args"]["model"]["init_args"]
            differing = {key for key in mine if mine[key] != network.get(key)}
            assert differing <= {"attention", "attention_options", "mechanism", "mechanism_options"}
            changed["model"]["init_args"]["model"]["init_args"] = network
            assert changed == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_variant_builds_and_runs_on_a_batch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of each variant, forward and backward, on images or a graph of the data's form."""
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)
    import importlib

    config = yaml.safe_load(path.read_text())
    counts = set()
    for variant in variants_of(config).values():
        given = with_variant(config, variant)["model"]["init_args"]["model"]
        module, _, name = given["class_path"].rpartition(".")
        torch.manual_seed(0)
        model = getattr(importlib.import_module(module), name)(**given["init_args"])
        arguments = given["init_args"]
        if "img_size" in arguments:
            size = arguments["img_size"]
            batch = {"x": torch.randn(2, arguments["in_chans"], size, size)}
        else:
            ring = torch.stack([torch.arange(9), (torch.arange(9) + 1) % 9])
            x = torch.randint(3, (9,)) if "in_vocab" in arguments else torch.randn(9, arguments["in_channels"])
            batch = {"x": x, "edge_index": torch.cat([ring, ring.flip(0)], 1)}
            batch |= {"pe": torch.randn(9, 2)} if "pe_dim" in arguments else {}
        model(**batch).square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        counts.add(sum(p.numel() for p in model.parameters()))
    assert max(counts) - min(counts) < 0.02 * min(counts)  # the same budget


def test_a_network_without_the_options_is_told_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "run_all", lambda *_: pytest.fail("it began"))
    other = FOLDER.parent / "cora" / "small.yaml"
    bare = tmp_path / "bare.yaml"
    bare.write_text("model: {class_path: graphattn.training.NodeClassification}\n")
    for config, message in ((other, "no option 'mechanism', 'mechanism_options'"), (bare, "a network with class_path")):
        command = ["--config", str(FOLDER / "digits.yaml"), str(config), "--out", str(tmp_path / "out")]
        assert compare.main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"compare: error: {config}: ") and message in error
    assert not (tmp_path / "out").exists()


def test_the_table_counts_differences_by_seed() -> None:
    def results(*accuracies: float) -> list[Results]:
        shared = ("x", 0, "accuracy")
        figures = [Figures(1, {"accuracy": a + 1}, {"accuracy": a}, {"accuracy": a}) for a in accuracies]
        return [Results(*shared, f, f, 3, 3, 5.0, 10, "cpu", "32-true", "runs/x") for f in figures]

    text = table.markdown({"softmax": results(90.0, 92.0), "infsa": results(91.0, 95.0)}, "toy")
    assert text.startswith("# toy: test accuracy, 2 seeds")
    assert "| softmax | 10 | 91.00 ± 1.41 | 91.00 ± 1.41 |  | 92.00 ± 1.41 | 5 |" in text
    assert (
        "| infsa | 10 | 93.00 ± 2.83 | 93.00 ± 2.83 | 2.00 ± 1.41 [-10.71, +14.71] |" in text
    )  # 12.706 * 1.414 / 2 ** 0.5


def test_a_table_has_the_seeds_that_all_variants_have(tmp_path: Path) -> None:
    plan = runs.Plan(FOLDER / "digits.yaml", tmp_path / "x", 3, ())
    assert runs.read_table(plan) == {}
    figures = Figures(1, {"accuracy": 1.0}, {"accuracy": 1.0}, {"accuracy": 1.0})
    for key, seeds in {"softmax": (0, 1, 2), "infsa-1-hop": (0, 2)}.items():
        for seed in seeds:
            folder = plan.folder(key, seed)
            folder.mkdir(parents=True)
            found = Results("x", seed, "accuracy", figures, figures, 20, 20, 5.0, 10, "cpu", "32-true", str(folder))
            (folder / "results.json").write_text(found.to_json())
    assert {key: [r.seed for r in rows] for key, rows in runs.read_table(plan).items()} == {
        "softmax": [0, 2],
        "infsa-1-hop": [0, 2],
    }
    assert plan.is_finished("softmax", 1) and not plan.is_finished("infsa-1-hop", 1)
    longer = plan._replace(overrides=("--trainer.max_epochs=21",))
    assert not longer.is_finished("softmax", 1)  # it goes on
    nodes = runs.Plan(FOLDER / "minesweeper.yaml", tmp_path / "y", 3, ())
    assert "--data.split=2" in nodes.arguments("pagerank", 2) and "--seed_everything=2" in nodes.arguments(
        "pagerank", 2
    )


def test_commands_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    say = "import os, time; time.sleep(0.3); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    fail = "import sys; sys.exit('error: no')"
    texts = [say, say, say, say, fail]
    jobs = [
        parallel.Job(f"job {n}", [sys.executable, "-c", text], tmp_path / f"{n}.log") for n, text in enumerate(texts)
    ]
    assert parallel.run_jobs(jobs, 4) == [jobs[4]]
    used = [job.log.read_text().splitlines()[-1] for job in jobs[:4]]
    assert sorted(used) == ["3", "3", "5", "5"]
    out = capsys.readouterr().out
    assert "== job 4: FAILED (error: no; see" in out and "== job 0: done after" in out and ", 0 left" in out


def test_images_are_of_the_whole_test_set() -> None:
    assert evenly(10_000, 5).tolist() == [0, 2500, 5000, 7499, 9999]
    assert evenly(3, 5).tolist() == [0, 1, 2] and len(evenly(10_000, 360).unique()) == 360


def test_digits_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, titles: dict[str, str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)
    monkeypatch.chdir(tmp_path)
    for name, few in {"IMAGES": 16, "SHOWN": 2, "STEPS": 4}.items():
        monkeypatch.setattr(look, name, few)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    few = ["--trainer.max_epochs=1", "--model.model.depth=1"]
    quiet = ["--trainer.enable_progress_bar=false", "--model.model.embed_dim=16"]
    call = ["--config", str(FOLDER / "digits.yaml"), "--quick", "--", *few, *quiet]
    assert compare.main(call) == 0
    folder = tmp_path / "runs" / "infsa-digits-compare-quick"
    text = (folder / "compare.md").read_text()
    found = json.loads((folder / "compare.json").read_text())
    assert list(found) == ["softmax", "infsa-1-hop", "infsa-3-hops", "linear-infsa"]
    assert text.count("| linear-infsa |") == 3 and "layer 1 |" in text  # accuracy, cosines, deletion
    for name in ("compare", "deletion", "relevance"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert text.startswith("# QUICK RUN, no results: infsa-digits-compare-quick: ")
    assert len(titles) == 3 and all(title.startswith("QUICK RUN, no results: ") for title in titles.values())
    losses = [row["last"]["test"]["loss"] for rows in found.values() for row in rows]
    assert len(set(losses)) == 4  # four different networks
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--config", "nothing.yaml"])
    capsys.readouterr()
