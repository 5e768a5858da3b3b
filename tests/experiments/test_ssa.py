"""SSA's experiments: every configuration trains, the comparison comes to its table, memory falls as keep does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.ssa import compare, density, memory, table, work
from experiments.ssa.build import load_config, task_of
from experiments.ssa.work import KEEPS, Variant
from graphattn.mechanisms import SSA
from graphattn_kernels import backends


@pytest.mark.parametrize("task", ["pattern", "cluster", "cifar10", "mnist", "digits", "text"])
def test_every_network_is_dense_until_it_is_told_to_draw(task: str) -> None:
    config = load_config(task)
    module = task_of(config)
    found = [part for part in module.modules() if isinstance(part, SSA)]
    layers = config["model"]["init_args"]["model"]["init_args"]
    assert len(found) == layers.get("layers", layers.get("depth")) and all(part.keep == 1.0 for part in found)
    assert config["run"]["name"] == f"ssa-{task}"
    names = [variant.name for variant in compare.variants_of(task)]
    assert names[:4] == ["dense", "ssa-0.5", "ssa-0.25", "ssa-0.125"]
    assert ("ssa-0.25-local" in names) == (task not in ("pattern", "cluster"))
    assert [variant.name for variant in compare.variants_of(task, [0.5])] == ["dense", "ssa-0.5"]


@pytest.mark.parametrize(("epochs", "fork"), [(1, 1), (2, 1), (4, 3), (8, 7), (15, 14), (20, 18), (30, 27)])
def test_the_dense_end_is_whole_epochs(epochs: int, fork: int) -> None:
    assert work.fork_of(epochs) == fork


def test_digits_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, titles: dict[str, str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)
    monkeypatch.setattr(compare, "variants_of", lambda task, keeps: [Variant(keep) for keep in (1.0, *keeps)])
    for module in (work, table):
        monkeypatch.setattr(module, "ENSEMBLES", (1, 2, 4, 8))
    monkeypatch.setattr(work, "PASSES", 8)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    call = ["--task", "digits", "--quick", "--keep", "0.25", "--out", str(tmp_path)]
    assert compare.main(call) == 0
    text = (tmp_path / "compare.md").read_text()
    found = json.loads((tmp_path / "compare.json").read_text())
    dense, quarter = found["parts"]["dense"][0], found["parts"]["ssa-0.25"][0]
    assert list(dense["ensembles"]) == [f"{keep:g}" for keep in KEEPS[1:]] and list(quarter["ensembles"]) == ["0.25"]
    assert "tuned" in quarter and "tuned" not in dense
    assert quarter["tuned"]["nll"] != quarter["dense"]["nll"]  # the fork went another way
    losses = [quarter["ensembles"]["0.25"][str(size)]["nll"] for size in (1, 2, 4, 8)]
    assert all(b <= a + 1e-7 for a, b in zip(losses, losses[1:], strict=False))  # Jensen, group by group
    epochs = quarter["epochs"]
    assert f"the last {epochs - work.fork_of(epochs)} of {epochs} epochs on whole graphs" in text
    assert "| ssa-0.25, then dense | whole graph |" in text and "| dense, keep 0.125 |" in text
    rows = (tmp_path / "compare.csv").read_text().splitlines()
    assert rows[0] == "training,test,seed,accuracy" and len(rows) == 1 + 1 + 12 + 2 + 4
    for name in ("compare.png", "density.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert text.startswith("# QUICK RUN, no results: SSA on ")
    assert titles["compare.png"].startswith("QUICK RUN, no results: ") and "over 10 draws" in titles["density.png"]
    before = (tmp_path / "dense" / "seed_0.json").stat().st_mtime_ns
    assert compare.main(call) == 0  # reads what is there
    assert (tmp_path / "dense" / "seed_0.json").stat().st_mtime_ns == before
    capsys.readouterr()


def test_densities_by_distance() -> None:
    line = (torch.arange(32)[:, None] - torch.arange(32)).abs().double()
    uniform = density.coverage(density.Case("uniform", "uniform"), 200, 32)
    distance, share = density.profile(uniform, line)
    assert distance.tolist() == list(range(32)) and (share[:16] - 0.25).abs().max() < 0.05
    _, local = density.profile(density.coverage(density.Case("local", "local", 0.0), 3, 32), line)
    assert local[0] == 1.0 and not local[8:].any()


def test_what_the_block_holds_shrinks_with_keep() -> None:
    """Bytes that autograd keeps beyond weights and inputs; the copy of edge rows that were drawn is not counted."""
    rows = {keep: memory.measure("attention", 192, keep, quick=True) for keep in (1.0, 0.25, 0.125)}
    for keep in (0.25, 0.125):
        share = (rows[keep].held_mib - rows[keep].drawn_mib) / rows[1.0].held_mib
        assert share < keep + 0.1  # token rows are of every size
    assert rows[0.25].drawn_mib == rows[0.25].edge_mib / 4


def test_memory_in_a_few_seconds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert memory.main(["--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["tokens"] for row in found] == [memory.QUICK] * 6 and "failed" not in capsys.readouterr().err
    assert (tmp_path / "memory.md").read_text().startswith("# QUICK RUN, no results: Edge-biased attention")
