"""Two processes give the numbers of one that sees both their batches."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graphattn.errors import ConfigError
from graphattn.training import load_checkpoint, run
from graphattn.training.data.order import WholeSplit
from graphattn.training.results import Results, read_results

Write = Callable[..., str]

TASK: dict[str, Any] = {
    "class_path": "graphattn.training.GraphClassification",
    "init_args": {
        "labels": "multilabel",
        "metric": "roc_auc",
        "model": {
            "class_path": "graphattn.models.graph.GraphTransformer",
            # Edge rows: the last block makes some that nobody reads. No batch norm: its statistics are each device's.
            "init_args": {
                "out_channels": 1,
                "in_vocab": 3,
                "pe_dim": 2,
                "width": 8,
                "heads": 2,
                "layers": 2,
                "constant_edges": True,
                "norm": "layer",
            },
        },
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
    },
}


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_two_processes_equal_one(write_config: Write, monkeypatch: pytest.MonkeyPatch):
    def config(batch_size: int) -> str:
        data = {"class_path": "toy.OddData", "init_args": {"batch_size": batch_size}}
        return write_config(model=TASK, data=data, trainer__max_epochs=3, trainer__gradient_clip_val=1.0)

    fit = ["fit", "--config", config(2), "--run.root=two", "--trainer.strategy=ddp", "--trainer.devices=2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {name: value for name, value in environment.items() if not name.startswith("PL_")}
    # A group that is left open can abort a process that has done its work.
    Path("train.py").write_text(
        "import sys, torch.distributed, graphattn.cli\n"
        "code = graphattn.cli.main()\n"
        "assert not torch.distributed.is_initialized()\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([*launch, "train.py", *fit], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run folder: two/toy/seed_3") == 1  # the first process speaks for all
    assert done.stdout.count("epoch 3/3") == 1

    alone = run("fit", ["--config", config(4), "--run.root=one"])
    together = read_results(Path("two/toy/seed_3"))
    assert isinstance(alone, Results) and together is not None

    one, two = (
        load_checkpoint(Path(root) / "toy/seed_3/checkpoints/last.ckpt")["state_dict"] for root in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    for a, b in zip(rows(Path("one/toy/seed_3")), rows(Path("two/toy/seed_3")), strict=True):
        assert (a["step"], a["lr"]) == (b["step"], b["lr"])
        for name in ("train/loss", "val/loss"):
            assert b[name] == pytest.approx(a[name], rel=1e-5)
        for name in ("train/roc_auc", "val/roc_auc"):
            assert b[name] == pytest.approx(a[name], abs=1e-4)  # of per cent; one wrong order of a pair is 0.06
    for name in ("last", "best"):
        a, b = getattr(alone, name), getattr(together, name)
        assert a.epoch == b.epoch
        assert b.test["roc_auc"] == pytest.approx(a.test["roc_auc"], abs=1e-4)
        assert b.test["loss"] == pytest.approx(a.test["loss"], rel=1e-5)
    assert together.parameters == alone.parameters
    files = {path.name for path in Path("two/toy/seed_3").iterdir()}
    assert files == {path.name for path in Path("one/toy/seed_3").iterdir()}


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_each_example_is_in_one_process(processes: int):
    parts = [list(WholeSplit(range(7), num_replicas=processes, rank=rank)) for rank in range(processes)]
    assert sorted(number for part in parts for number in part) == list(range(7))
    assert [len(WholeSplit(range(7), num_replicas=processes, rank=0))] == [len(parts[0])]


def test_more_processes_than_examples():
    with pytest.raises(ConfigError, match=r"a split of 2 examples cannot be shared by 3 processes; .*devices=2"):
        WholeSplit(range(2), num_replicas=3, rank=0)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_edges_and_sampled_nodes_are_shared_out(
    processes: int, ogb_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All modules: over the processes each example of an evaluation once, and each of a training epoch."""
    from types import SimpleNamespace

    from graphattn.training import LinkDataModule, NeighborDataModule

    monkeypatch.setenv("GRAPHATTN_CACHE", str(tmp_path / "cache"))
    ogb_files.write("ogbl-ddi", nodes=30)
    ogb_files.write("ogbn-arxiv", nodes=60)
    shared: dict[str, Any] = {"root": str(ogb_files.root)}
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    links = LinkDataModule("ogbl_ddi", batch_size=7, **shared)
    nodes = NeighborDataModule("ogbn_arxiv", [2], batch_size=4, evaluate="neighbors", **shared)
    seen: dict[str, list[Any]] = {"train edges": [], "edges": [], "train nodes": [], "nodes": []}
    for module in (links, nodes):
        module.setup()
        for rank in range(processes):
            strategy = SimpleNamespace(root_device=torch.device("cpu"))
            module.trainer = SimpleNamespace(  # type: ignore[assignment]
                world_size=processes,
                global_rank=rank,
                strategy=strategy,
                fit_loop=SimpleNamespace(epoch_progress=progress),
            )
            for stage, loader in (("train ", module.train_dataloader()), ("", module.val_dataloader())):
                for batch in loader:
                    if module is links:
                        seen[f"{stage}edges"] += [tuple(pair) for pair in batch.edge_label_index.T.tolist()]
                    else:
                        seen[f"{stage}nodes"] += batch.n_id[: batch.batch_size].tolist()
    valid = links.edges["valid"]
    assert sorted(seen["edges"]) == sorted(map(tuple, torch.cat((valid["edge"], valid["edge_neg"])).tolist()))
    assert sorted(seen["nodes"]) == nodes.data.val_mask.nonzero().view(-1).tolist()  # type: ignore[union-attr]
    train = {tuple(pair) for pair in links.edges["train"]["edge"].tolist()}
    assert set(seen["train edges"]) == train
    assert 0 <= len(seen["train edges"]) - len(train) < processes  # steps are the same number everywhere
    assert set(seen["train nodes"]) == set(nodes.data.train_mask.nonzero().view(-1).tolist())  # type: ignore[union-attr]
