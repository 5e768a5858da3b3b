"""The benchmark of InfSA over the number of tokens: it runs on a CPU, refuses what is wrong, and judges its targets."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.infsa import __main__ as command
from experiments.benchmarks.infsa import edges, operations, report
from experiments.benchmarks.infsa.edges_report import Timed, slopes
from experiments.benchmarks.infsa.stopwatch import Stopwatch
from experiments.benchmarks.measure import Effort
from experiments.benchmarks.row import Row


def row(workload: str, peer: str, what: str, ms: float | None) -> Row:
    return Row("InfSA", workload, peer, what, ms=ms, ms_low=ms, ms_high=ms)


def test_it_runs_and_everything_is_right(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--out", str(tmp_path), "--device", "cpu", "--quick", "--tokens", "36"]) == 0
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert len(rows) == 3 * 2 + 3 + 3
    assert all(float(r["ms"]) > 0 for r in rows) and all(float(r["error"]) < 1e-2 for r in rows)
    assert any(float(r["error"]) > 0 for r in rows)  # half types do round
    found = json.loads((tmp_path / "infsa.json").read_text())
    assert [target["met"] for target in found["targets"]] == [None] * len(found["targets"])
    assert (tmp_path / "infsa.png").read_bytes().startswith(b"\x89PNG")
    assert "| operation 36 | Linear-InfSA | forward+backward |" in capsys.readouterr().out


def test_propagators_over_edges(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ["--parts", "edges", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    assert command.main(quick) == 0
    assert told == [1, torch.get_num_threads()]  # other parts have the threads that there were
    found = json.loads((tmp_path / "edges.json").read_text())
    times = {(row["mover"], row["edges"]): row for row in found["times"]}
    assert len(times) == 4 * 3 and set(found["slopes"]) == set(edges.MOVERS) == set(found["linear"])
    assert all(row["ms_a_product"] * row["products"] == pytest.approx(row["ms"]) for row in times.values())
    assert all(0 < times[name, 1000]["error"] < 1e-4 for name in edges.MOVERS)
    kept = {row["mover"]: row for row in found["kept"]}
    for hops in (2, 4, 8, 16, 32, 64):
        row = kept[f"Neumann({hops})"]
        assert row["products"] == hops and row["states"] == 1 + math.log2(hops) and row["backward"] >= hops
    solved = [kept[f"Resolvent({gamma:g})"] for gamma in (0.5, 0.9, 0.99)]
    assert [row["products"] for row in solved] == sorted({row["products"] for row in solved})  # more and more
    assert {row["states"] for row in solved} == {2}  # and nothing more is kept: the result and the solution
    assert (tmp_path / "edges.png").read_bytes().startswith(b"\x89PNG") and not (tmp_path / "infsa.md").exists()
    assert "| Neumann(64) | 7 | 64 |" in capsys.readouterr().out

    monkeypatch.setitem(edges.MOVERS, "Neumann(8)", lambda: edges.Neumann(8, 0.91))
    with pytest.raises(RuntimeError, match=r"Neumann\(8\) is wrong: relative error"):
        command.main(quick)
    with pytest.raises(SystemExit):
        command.main([*quick, "--parts", "edge"])
    assert "--parts must be of operations, networks and edges, got 'edge'" in capsys.readouterr().err


def test_slopes_over_edges() -> None:
    rows = [Timed("a", 9, n, 4, ms, ms, ms, None) for n, ms in ((100, 2.0), (200, 3.0), (400, 6.0))]
    rows += [Timed("b", 9, n, n, n**3.0, 0.0, 0.0, None) for n in (100, 200, 400)]
    assert slopes(rows, 2) == {"a": pytest.approx(1.0), "b": pytest.approx(2.0)}
    assert slopes(rows) == {"a": pytest.approx(math.log2(3) / 2), "b": pytest.approx(2.0)}


def test_what_is_wrong_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = operations.rank_one_attention
    monkeypatch.setattr(operations, "rank_one_attention", lambda *x, **more: right(*x, **more) * 1.1)
    monkeypatch.setattr(operations, "_row", lambda q, k, v: right(q, k, v, scale=1.0 / 64, backend="reference"))
    watch = Stopwatch(tmp_path, torch.device("cpu"), Effort(0.01, 3, 3, 1), 20.0)
    operations.operations(25, watch, (operations.ROW, operations.LINEAR))
    assert [r.status for r in watch.rows] == ["ok", "ok", "wrong", "wrong"]
    assert watch.rows[2].ms is None and "relative error 1.0e-01" in watch.rows[2].text

    def fails() -> None:
        raise ValueError("no")

    assert watch.measure("network 4", "x", "forward", fails).text == "ValueError: no"
    late = watch.measure("network 4", "x", "forward", fails, expected=9.0)
    assert (late.status, late.ms) == ("time limit", None)


def test_targets() -> None:
    at, both = "operation 16384", "forward+backward"
    rows = [
        row(at, "SDPA cuDNN", f"{both} (graph)", 4.0),
        row(at, "SDPA flash", f"{both} (graph)", 5.0),
        row(at, "Linear-InfSA", f"{both} (graph)", 0.1),
        row(at, "SDPA flash", both, 6.0),
        row(at, "Linear-InfSA", both, 0.6),
        row(at, "InfSA one hop", both, 6.0),  # long, so there is no graph
        row("operation 65536", "Linear-InfSA", "forward", 60.0),
        row("network 1024", "linear_infsa", "forward", 9.0),
        *(row(f"network {n}", "linear_infsa", "forward", n**1.5) for n in (16_384, 65_536, 331_776)),
        row("network 65536", "linear_infsa", "training step", None),
    ]
    found = {verdict.text: verdict for verdict in report.verdicts(rows, 1e12)}
    linear = [v for text, v in found.items() if text.startswith("Linear-InfSA, 16,384")]
    assert [(v.value, v.met) for v in linear] == [(40.0, True), (pytest.approx(10.0), False)]
    hop = next(v for text, v in found.items() if text.startswith("InfSA one hop, 16,384 tokens, forward+backward"))
    assert (hop.value, hop.met, hop.stretch) == (pytest.approx(1.2), False, 0.8)
    floor = 3 * 65_536 * 8 * 64 * 2 / 1e12 * 1e3
    share = next(v for text, v in found.items() if text.startswith("Linear-InfSA, 65,536 tokens, forward (graph)"))
    assert share.value == pytest.approx(60.0 / floor) and share.met is False
    assert report.slope(rows, "linear_infsa") == pytest.approx(1.5)
    fits = {text: v.met for text, v in found.items() if text.endswith("fits")}
    assert list(fits.values()) == [True, False]
    assert report.slope(rows, "softmax") is None and not math.isnan(hop.goal)
