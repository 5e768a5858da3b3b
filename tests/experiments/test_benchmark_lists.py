"""The benchmark of drawn and learned graphs: on a CPU it checks its jobs, refuses what is wrong, and tells ratios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.lists import rows
from experiments.benchmarks.lists.__main__ import main
from experiments.benchmarks.lists.jobs import Job
from experiments.benchmarks.lists.report import ratios
from experiments.benchmarks.lists.rows import Row
from experiments.benchmarks.measure import Effort, replayed
from graphattn import TokenGraph, attend


def call(out: Path) -> tuple[int, list[dict]]:
    done = main(["--quick", "--sections", "blocks", "--out", str(out)])
    return done, json.loads((out / "lists.json").read_text())["rows"]


def test_it_checks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    done, found = call(tmp_path)
    assert done == 0 and {row["mode"] for row in found} == {"checked"}
    errors = {row["peer"]: row["error"] for row in found}
    assert 0 < errors["ours"] < 1e-2 and 0 < errors["ours, lists ready"] < 1e-2 and errors["sdpa cuDNN"] is None
    assert (tmp_path / "lists.csv").read_text().startswith("section,case,peer")
    assert "selection alone" in (tmp_path / "lists.md").read_text()
    capsys.readouterr()


def test_what_is_wrong_gets_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    right = rows.attend
    monkeypatch.setattr(rows, "attend", lambda *x, **more: right(*x, **more) * 1.1)
    done, found = call(tmp_path)
    assert done == 1
    wrong = [row for row in found if row["mode"] == "failed"]
    assert {row["peer"] for row in wrong} == {"ours", "ours, lists ready"}
    assert all(row["text"] == "wrong values" and row["median"] is None for row in wrong)
    capsys.readouterr()


def test_the_backend_of_the_job_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, right = [], rows.attend
    monkeypatch.setattr(rows, "attend", lambda *x, **more: (asked.append(more["backend"]), right(*x, **more))[1])
    x = [torch.randn(1, 8, 2, 4, requires_grad=True) for _ in range(3)]
    graph = TokenGraph.from_mask(torch.ones(1, 2, 8, 8, dtype=torch.bool), "bh")
    job = Job("masks", "n=8", "by name", lambda x: attend(graph, *x), x, graph, backend="reference")
    assert rows.error(job) < 1e-5 and asked == ["reference"]


@pytest.mark.gpu
def test_a_graph_may_hold_many_calls() -> None:
    x = torch.zeros(1, device="cuda")
    timing = replayed(lambda: (x.add_(1),), Effort(least=1, most=1, warm_ups=1), calls=8)
    assert x.item() == 1 + 8 + 8 and timing.repetitions == 1  # to warm up: a call, a replay; and what is timed


def test_ratios_are_to_the_fastest_peer() -> None:
    both = "forward+backward"

    def row(peer: str, ms: float) -> Row:
        return Row("ssa", "N=8192", peer, both, "graph", median=ms)

    found = ratios([row("sdpa cuDNN", 6.0), row("sdpa flash2", 5.0), row("ours uniform 1/4", 2.0)])
    assert found == ["SSA step, N=8192, forward+backward, graph: sdpa flash2 / ours uniform 1/4 = 2.50 (>= 2.5: holds)"]
    assert "MISSED" in ratios([row("sdpa flash2", 5.0), row("ours uniform 1/8", 2.0)])[0]
