"""The comparison of heads: variants, tables, and generated scenes all the way to pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from experiments.connnet import compare, look, table
from experiments.connnet.variants import BASELINE, VARIANTS, with_variant
from graphattn.models.image import ConnNet
from graphattn.training import Segmentation
from graphattn.training.results import Figures, Results
from graphattn_kernels import backends

Image = pytest.importorskip("PIL.Image")
FOLDER = Path(compare.__file__).parent


@pytest.mark.parametrize("name", compare.DATA)
def test_variants_differ_in_head_loss_and_long_range_only(name: str) -> None:
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    seen = set()
    for variant in VARIANTS:
        changed = with_variant(config, variant)
        task = changed["model"]["init_args"]
        network = task["model"]["init_args"]
        seen.add((network.pop("head"), task.pop("loss"), network.pop("long_range")))
        original = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        del original["model"]["init_args"]["loss"]
        del original["model"]["init_args"]["model"]["init_args"]["head"]
        del original["model"]["init_args"]["model"]["init_args"]["long_range"]
        assert changed == original
    assert len(seen) == len(VARIANTS) == 6
    heads = {head for head, _, _ in seen}
    assert heads == ({"binary", "instances"} if name in ("nuclei", "generated") else {"binary", "connectivity"})


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_from_a_batch(variant: str) -> None:
    config = with_variant(yaml.safe_load((FOLDER / "nuclei.yaml").read_text()), variant)["model"]["init_args"]
    small = {"width": 8, "backbone_options": {"widths": [4, 8], "depth": 1}}
    task = Segmentation(ConnNet(**config["model"]["init_args"], **small), config["loss"], config["labels"])
    logits = task.model(torch.randn(2, 3, 12, 12))
    task.loss(logits, torch.randint(0, 3, (2, 12, 12))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


def test_the_budget_is_the_same() -> None:
    counts = [sum(p.numel() for p in ConnNet(head=head).parameters()) for head in ("binary", "connectivity")]
    assert counts[1] - counts[0] == 7 * (24 * 9 + 1)  # seven more channels of the last convolution


def results(*values: float) -> list[Results]:
    figures = [Figures(1, {}, {"max_f": v}, {"max_f": v, "loss": 9.0}) for v in values]
    return [Results("x", n, "max_f", f, f, 3, 3, 5.0, 10, "cpu", "32-true", "x") for n, f in enumerate(figures)]


def test_differences_are_paired_by_seed() -> None:
    found = {name: results(0.5, 0.7, 0.9) for name in VARIANTS}
    found["connectivity"] = results(0.6, 0.8, 1.0)
    found["connectivity + long range"] = results(0.5, 0.8, 0.9)
    text = table.markdown(found, "toy")
    assert "| binary | 0.700 ± 0.200 | 10 | 5 |" in text and "loss" not in text.splitlines()[4]
    assert "| connectivity | +0.100 [+0.100, +0.100]* |" in text
    # Mean 0.0333, deviation 0.0577; Student's 97.5 % quantile for 2 degrees of freedom is 4.303.
    assert "| connectivity + long range | +0.033 [-0.110, +0.177] |" in text
    assert "| connectivity: long range less none | -0.067 [-0.210, +0.077] |" in text


def test_generated_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, titles: dict[str, str]
) -> None:
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)
    monkeypatch.setattr(look, "SHOWN", 2)
    kept = [BASELINE, "connectivity, bilateral losses"]
    for variant in [name for name in VARIANTS if name not in kept]:
        monkeypatch.delitem(VARIANTS, variant)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    few = [
        '--data.options={"size": 16, "num_images": [24, 4, 6]}',
        "--trainer.limit_train_batches=2",
        "--trainer.max_epochs=1",
        "--model.model.init_args.width=8",
        "--model.model.init_args.backbone_options={'widths': [4, 8], 'depth': 1}",
    ]
    call = ["--data", "generated", "--quick", "--out", str(tmp_path), "--", *few]
    assert compare.main(call) == 0
    folder = tmp_path / "generated"
    text = (folder / "compare.md").read_text()
    assert text.count(f"| {BASELINE} |") == 1 and "ap70" in text
    assert text.startswith("# QUICK RUN, no results: generated: test")
    assert len(titles) == 3 and all(title.startswith("QUICK RUN, no results: ") for title in titles.values())
    found = json.loads((folder / "compare.json").read_text())
    assert list(found) == kept
    losses = [rows[0]["last"]["test"]["loss"] for rows in found.values()]
    assert len(set(losses)) == 2  # different networks
    with (folder / "compare.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2
    for name in ("examples", "saliency", "connectivity"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 400
    capsys.readouterr()
    assert compare.main(call) == 0  # finished runs are read, not repeated
    assert "==" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--data", "cats"])
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--data", "horses", "--seeds", "0"])
