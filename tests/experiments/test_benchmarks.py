from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_geometric")

from experiments.benchmarks import graphs, measure, peers, reference, report, section, workloads
from experiments.benchmarks.__main__ import main
from experiments.benchmarks.measure import Effort
from experiments.benchmarks.peers import Call, Peer, Unsupported
from experiments.benchmarks.peers.plain import gather_scatter
from experiments.benchmarks.peers.roof import HEAD_GROUPS, Roof, sums
from experiments.benchmarks.row import Options, Row
from experiments.benchmarks.targets import TARGETS, results, slower_than
from graphattn_kernels import backends

CPU = torch.device("cpu")
SPECS = {spec.name: spec for spec in workloads.SPECS}
ONE_OF_A_KIND = [
    "W1 d16 fp32",
    "W1 GAT d16 fp16",
    "W1 GATv2 d16 fp16",
    "W2 d8 fp16 edges",
    "W3 62M fp16",
    "W4 16k window",
    "W4 16k causal",
    "W4 image grid",
    "W5 25%",
    "W6 4k",
]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch):
    """One thread, and ours by the gather backend: Numba would compile for minutes what its own tests look at."""
    monkeypatch.setattr(backends, "_HAS_NUMBA", False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str) -> workloads.Workload:
    return SPECS[name].make(CPU, 0, "tiny")


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_citation_graph_is_what_is_written():
    graph = graphs.power_law_undirected(2000, 8000, 3, CPU)
    source, target = graph.edges
    assert graph.num_edges == 2 * 8000 + 2000
    keys = target * 2000 + source
    assert torch.equal(keys, keys.unique())  # each once, sorted by target
    assert set(zip(source.tolist(), target.tolist(), strict=True)) == set(
        zip(target.tolist(), source.tolist(), strict=True)
    )
    assert int((source == target).sum()) == 2000
    degree = graph.rowptr.diff().double()
    assert degree.max() > 20 * degree.median()  # it has hubs, ...
    assert degree.argmax() != 0  # ... and their ids are shuffled
    again = graphs.power_law_undirected(2000, 8000, 3, CPU)
    other = graphs.power_law_undirected(2000, 8000, 4, CPU)
    assert torch.equal(graph.edges, again.edges) and not torch.equal(graph.edges, other.edges)


def test_product_graph_has_no_loops_and_as_many_edges_as_asked():
    source, target = graphs.power_law_directed(500, 7000, 0, CPU).edges
    assert source.shape == (7000,) and bool((source != target).all())
    assert torch.equal(target, target.sort().values)


def test_equal_degrees_differ_by_one_at_most():
    graph = graphs.equal_degrees(300, 1000, 0, CPU)
    for end in graph.edges:
        degree = torch.bincount(end, minlength=300)
        assert int(degree.max()) - int(degree.min()) <= 1


def test_molecules_are_trees_with_rings():
    graph = graphs.molecules(40, 0, CPU)
    assert graph.ptr is not None
    token_graph = graph.token_graph()
    assert token_graph.is_symmetric and not token_graph.has_duplicates and not token_graph.has_self_loops
    assert int(graph.rowptr.diff().max()) <= 6
    for member in token_graph.unbatch():
        assert 12 <= member.num_tokens <= 38
        assert 2 <= member.num_edges // 2 - (member.num_tokens - 1) <= 4
        assert member.power(member.num_tokens).num_edges == member.num_tokens**2  # connected


def test_every_pixel_of_the_grid_reads_its_square():
    graph = graphs.image_grid(9, 8, 5, CPU)
    assert torch.equal(graph.rowptr.diff(), torch.full((72,), 25))
    source, target = graph.edges
    rows = source[target == 4 * 8 + 4]
    assert sorted(rows.tolist()) == sorted(8 * r + c for r in range(2, 7) for c in range(2, 7))
    corner = source[target == 0]
    assert sorted(corner.tolist()) == sorted(8 * r + c for r in range(5) for c in range(5))


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_forms_of_a_graph_agree(name: str):
    graph = make(name).graph
    found = graph.token_graph()
    assert torch.equal(found.to_dense().squeeze(), graph.dense.squeeze())
    assert found.num_edges == graph.num_edges
    if graph.mask is None:
        assert torch.equal(found.edge_index, graph.edges)
    if graph.rule is not None:
        token = torch.arange(graph.num_tokens)
        assert torch.equal(graph.rule(token[:, None], token[None, :]), graph.dense)


def test_full_sizes_are_those_of_the_tables():
    # The generators themselves run at full size only on a GPU; their arguments are in the closures of the makers.
    tokens, pairs = 169_343, 1_157_799
    assert 2 * pairs + tokens == 2_484_941
    assert {spec.section for spec in workloads.SPECS} == {"W1", "W1gat", "W2", "W3", "W4", "W4img", "W5", "W6", "CPU"}
    assert {target.workload for target in TARGETS} <= set(SPECS)


# --- reference and peers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["W1 d16 fp32", "W2 d8 fp16 edges", "W4 16k causal", "W5 25%", "W6 4k"])
def test_truth_is_the_dense_formula(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reference, "_ELEMENTS", 1 << 15)  # several parts
    work = make(name)
    truth = reference.truth_of(work)
    x = {key: value.detach().double().requires_grad_() for key, value in work.inputs.items()}
    q, k, v = (x[key].transpose(-3, -2) for key in "qkv")
    if work.edge_gate is None:
        scores = torch.einsum("...td,...sd->...ts", q, k) * work.scale
    else:
        source, target = work.graph.edges
        n, heads, width = work.q.shape
        gate = torch.ones(n, n, heads, width, dtype=torch.float64).index_put((target, source), x["edge_gate"])
        scores = torch.einsum("htd,hsd,tshd->hts", q, k, gate) * work.scale
    mask = work.graph.dense
    out = (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(-3, -2)
    wanted = torch.autograd.grad(out, list(x.values()), work.grad.double())
    assert reference.relative_error(truth["out"], out) < 1e-12
    for key, grad in zip(x, wanted, strict=True):
        assert reference.relative_error(truth[key], grad) < 1e-12, key


def test_relative_error_sees_what_is_not_finite():
    wanted = torch.ones(4)
    assert reference.relative_error(wanted * 1.1, wanted) == pytest.approx(0.1)
    assert reference.relative_error(torch.tensor([1.0, torch.nan, 1.0, 1.0]), wanted) == float("inf")
    assert reference.relative_error(torch.ones(3), wanted) == float("inf")


# Compilation, and Triton's interpreter, take minutes; their kernels have tests of their own.
SLOW_HERE = ("torch.compile", "gather roof", "ours: triton", "ours: tiles")
RUN_HERE = {
    "W1 d16 fp32": {"ours", "PyG", "torch", "torch.sparse"},
    "W1 GAT d16 fp16": {"ours", "PyG"},
    "W1 GATv2 d16 fp16": {"ours", "PyG"},
    "W2 d8 fp16 edges": {"ours", "ours: csr_attention", "torch"},
    "W3 62M fp16": {"ours", "PyG"},
    "W4 16k window": {"ours", "SDPA mask"},
    "W4 16k causal": {"ours", "SDPA mask"},
    "W4 image grid": {"ours", "SDPA mask"},
    "W5 25%": {"ours", "SDPA mask"},
    "W6 4k": {"ours"},
}


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_peers_compute_the_same_function(name: str):
    work, spec = make(name), SPECS[name]
    truth, ran = reference.truth_of(work), set()
    for peer in peers.find(None):
        if spec.section not in peer.sections or not peer.applies(work) or peer.name in SLOW_HERE:
            continue
        try:
            passes = measure.passes(work, peer.build(work), backward=peer.backward)
            errors = {what: measure.check(work, run, truth) for what, run in passes.items()}
        except (ImportError, Unsupported, section.BackendError):
            continue
        assert work.q.dtype == torch.float32 and max(errors.values()) < 1e-5, (peer.name, errors)
        ran.add(peer.name)
    assert RUN_HERE[name] <= ran


@pytest.mark.requires("dgl")
def test_dgl_computes_the_same_function():
    from experiments.benchmarks.peers.graph_libraries import Dgl

    work = make("W1 d16 fp32")
    run = measure.passes(work, Dgl().build(work), backward=True)["forward+backward"]
    assert measure.check(work, run, reference.truth_of(work)) < 1e-5


@pytest.mark.requires("dgl")
def test_dgl_is_a_peer_on_the_cpu(tmp_path: Path):
    from experiments.benchmarks.peers.graph_libraries import Dgl

    section.run_section([SPECS["W1-small d16 fp32"]], [Dgl()], TINY, tmp_path / "CPU.jsonl")
    rows = report.read([tmp_path / "CPU.jsonl"])[0]
    assert [(row.what, row.status) for row in rows] == [("forward", "ok"), ("forward+backward", "ok")]


def test_padded_batches_go_through_sdpa():
    from experiments.benchmarks.peers.dense import SDPA

    work = make("W2 d16 fp16")
    run = measure.passes(work, SDPA[0]().build(work), backward=True)["forward+backward"]
    assert measure.check(work, run, reference.truth_of(work)) < 1e-5


@pytest.mark.parametrize("name", ["W2 d16 fp16", "W4 16k window", "W4 image grid", "W5 25%"])
def test_block_masks_are_those_of_flex_attention(name: str):
    from torch.nn.attention.flex_attention import create_block_mask

    from experiments.benchmarks.peers import flex

    work = make(name)
    n = work.graph.num_tokens
    leading = (None, None) if work.graph.mask is None else work.graph.mask.shape[:2]
    found = flex.block_mask(work, 128)
    wanted = create_block_mask(flex._mask_mod(work), *leading, n, n, device="cpu")
    assert torch.equal(found.to_dense(), wanted.to_dense())
    assert torch.equal(found.full_kv_num_blocks, wanted.full_kv_num_blocks)


@pytest.mark.triton
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available(), reason="needs Triton's interpreter"
)
def test_roof_reads_every_row_once(monkeypatch: pytest.MonkeyPatch):
    from experiments.benchmarks.peers import roof

    monkeypatch.setattr(roof, "CHUNK", 8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graph = graphs.power_law_undirected(30, 60, 0, device)
    work = workloads._tensors(graph, 8, 16, torch.float32, 0, device)
    whole = graph.rowptr.diff() <= 8
    assert not bool(whole.all())
    calls = Roof().variants(work)
    assert set(calls) == set(HEAD_GROUPS)
    for call in calls.values():
        assert reference.relative_error(call()[whole], sums(work)[whole]) < 1e-6


def test_turbo_gnn_is_given_the_rows_that_its_kernel_wants(monkeypatch: pytest.MonkeyPatch):
    """A stand-in with the reading of its CUDA source: K at the target of an edge, Q and V at its source."""
    from types import SimpleNamespace

    from experiments.benchmarks.peers.fused import TurboGnn

    def aggregate(graph: Tensor, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, scale: float) -> Tensor:
        source, target = graph
        scores = (Q[source] * K[target]).sum(-1) * scale
        return reference.segment_attention(scores, V[source], target, x.shape[0])

    adjacency = SimpleNamespace(from_edge_list=lambda edges, num_nodes, index_dtype: edges)
    stand_in = SimpleNamespace(graph_transformer_aggr=aggregate, AdjacencyForwardBackwardWithNodeBuckets=adjacency)
    monkeypatch.setitem(sys.modules, "turbo_gnn", stand_in)  # type: ignore[arg-type]
    work = make("W1 d64 fp16")
    run = measure.passes(work, TurboGnn().build(work), backward=True)["forward+backward"]
    assert measure.check(work, run, reference.truth_of(work)) < 1e-5
    with pytest.raises(Unsupported, match="this workload has 16"):
        TurboGnn().build(make("W1 d16 fp16"))


# --- rows -------------------------------------------------------------------------------------------------------------


class Good(Peer):
    name = "good"
    sections = ("W2",)

    def build(self, work: workloads.Workload) -> Call:
        return gather_scatter(work)


class Missing(Good):
    name = "missing one"

    def build(self, work: workloads.Workload) -> Call:
        import no_such_package  # noqa: F401

        raise AssertionError


class Refusing(Good):
    name = "refusing"

    def build(self, work: workloads.Workload) -> Call:
        raise Unsupported("not today")


class Wrong(Good):
    name = "wrong"

    def build(self, work: workloads.Workload) -> Call:
        right = gather_scatter(work)
        return lambda: right() * 1.1


class WrongGradient(Good):
    name = "wrong gradient"

    def build(self, work: workloads.Workload) -> Call:
        right = gather_scatter(work)

        def call() -> Tensor:
            out = right()
            return out + 0.3 * (out - out.detach())

        return call


class Raising(Good):
    name = "raising"

    def build(self, work: workloads.Workload) -> Call:
        def call() -> Tensor:
            raise torch.OutOfMemoryError("tried to allocate 5 TiB\nand more")

        return call


class Slow(Good):
    name = "slow"

    def build(self, work: workloads.Workload) -> Call:
        time.sleep(30)
        raise AssertionError


TINY = Options("cpu", 0, "tiny", Effort(0.001, 3, 3, 0), limit=0.5)


def rows_of(folder: Path, *made: type[Peer]) -> list[Row]:
    path = folder / "W2.jsonl"
    section.run_section([SPECS["W2 d16 fp16"]], [peer() for peer in made], TINY, path)
    return report.read([path])[0]


def test_every_peer_leaves_rows(tmp_path: Path):
    rows = rows_of(tmp_path, Missing, Refusing, Wrong, WrongGradient, Raising, Good)
    found = {(row.peer, row.what): row for row in rows}
    assert found["missing one", "*"].status == "missing" and "no_such_package" in found["missing one", "*"].text
    assert found["refusing", "*"].status == "unsupported" and found["refusing", "*"].text == "not today"
    for what in ("forward", "forward+backward"):
        assert found["wrong", what].status == "wrong" and found["wrong", what].error == pytest.approx(0.1, abs=0.01)
        assert found["raising", what].status == "out of memory"
        assert found["raising", what].text == "tried to allocate 5 TiB"
        assert found["good", what].status == "ok"
        assert 0 < found["good", what].ms_low <= found["good", what].ms <= found["good", what].ms_high
        assert found["good", what].repetitions == 3
    assert found["wrong gradient", "forward"].status == "ok"
    assert found["wrong gradient", "forward+backward"].status == "wrong"
    assert all((row.ms is None) == (row.status != "ok") for row in rows)  # what fails has no time


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
def test_a_slow_peer_is_stopped(tmp_path: Path):
    begin = time.perf_counter()
    slow, *others = rows_of(tmp_path, Slow, Good)
    assert slow.status == "time limit" and "0.5 s" in slow.text and time.perf_counter() - begin < 25
    assert [row.status for row in others] == ["ok", "ok"]


def test_a_section_goes_on_after_its_process_died(tmp_path: Path):
    path = tmp_path / "W2.jsonl"
    entries = [{"begin": ["W2 d16 fp16", "wrong"]}, {"lost": ["W2 d16 fp16", "wrong", "exit code -11"]}]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    rows = rows_of(tmp_path, Wrong, Good)
    assert {(row.peer, row.status) for row in rows} == {("good", "ok"), ("wrong", "failed")}
    assert next(row.text for row in rows if row.peer == "wrong") == "exit code -11"


def test_unknown_names_are_errors(capsys: pytest.CaptureFixture):
    assert main(["--workloads", "W9"]) == 2
    assert "W9" in capsys.readouterr().err
    assert main(["--workloads", "W2", "--peers", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
    names = [peer.name for peer in peers.find(["ours", "sdpa"])]
    assert "ours" in names and "ours: tiles" in names and "SDPA cuDNN bias" in names and "PyG" not in names


# --- ratios and reports -----------------------------------------------------------------------------------------------


def row(workload: str, peer: str, what: str = "forward", ms: float | None = 1.0, **more: object) -> Row:
    return Row("W1", workload, peer, what, ms=ms, ms_low=ms, ms_high=ms, repetitions=7, **more)  # type: ignore[arg-type]


ROWS = [
    row("W1 d16 fp16", "ours", ms=0.25, error=1e-3),
    row("W1 d16 fp16", "PyG", ms=13.0, error=2e-3, text="as shipped"),
    row("W1 d16 fp16", "gather roof", ms=0.2),
    row("W1 d16 fp16", "ours", "forward+backward", ms=1.0),
    row("W1 d16 fp16", "PyG", "forward+backward", ms=20.0),
    row("W1 d16 fp16", "ours", "set-up", ms=3.0),
    row("W1 equal degrees d16 fp16", "ours", ms=0.2),
    row("W6 4k", "ours", ms=1.0),
    row("W6 4k", "SDPA cuDNN", ms=0.9),
    row("W6 4k", "SDPA flash", ms=1.5),
    row("W6 4k", "SDPA efficient", "*", ms=None, status="missing", text="no | wheel"),
    row("W3 62M fp16", "ours", "forward+backward", ms=25.0, peak_mb=210.0),
]
FACTS = {"W3 62M fp16": {"workload": "W3 62M fp16", "least_mb": 200.0, "edges": 62e6, "tokens": 5, "max_degree": 9}}


def test_ratios_come_from_rows():
    found = {(r.target.number, r.target.workload, r.target.what): r for r in results(ROWS, FACTS, "NVIDIA H200")}
    forward = found[1, "W1 d16 fp16", "forward"]
    assert forward.value == pytest.approx(52) and forward.met is True
    assert found[3, "W1 d16 fp16", "forward+backward"].value == pytest.approx(20)
    assert found[3, "W1 d16 fp16", "forward+backward"].met is False
    assert found[7, "W1 d16 fp16", "forward"].value == pytest.approx(0.8)
    assert found[8, "W1 d16 fp16", "forward+backward"].value == pytest.approx(0.6)  # three roofs over one call
    assert found[10, "W3 62M fp16", "forward+backward"].value == pytest.approx(1.05)
    assert found[10, "W3 62M fp16", "forward+backward"].met is True  # at most
    assert found[18, "W6 4k", "forward"].value == pytest.approx(0.9)  # the fastest of three
    assert found[21, "W1 equal degrees d16 fp16", "forward"].value == pytest.approx(1.25)
    assert found[21, "W1 equal degrees d16 fp16", "forward"].met is False
    assert found[22, "W1 d16 fp16", "forward+backward"].value == pytest.approx(3)
    roofless = found[9, "W3 62M fp16", "forward+backward"]
    assert roofless.value is None and roofless.met is None and roofless.why == "PyG: not run"
    assert not any(r.target.workload == "W2 d16 fp16" for r in found.values())  # was not run at all


def test_no_verdict_off_the_device_of_the_targets():
    at, gpu = "W1-small d16 fp32", "W1 d16 fp16"
    rows = [*ROWS, row(at, "ours", ms=1.0), row(at, "PyG", ms=16.0)]
    found = {
        (r.target.workload, r.target.what, r.target.column, r.target.number): r
        for r in results(rows, FACTS, "Some CPU")
    }
    first = found[gpu, "forward", "ms", 1]
    assert first.value == pytest.approx(52) and first.met is None
    assert found[at, "forward", "ms", 0].met is True  # the CPU's own
    assert found[at, "forward", "peak_mb", 0].why == "PyG: not measured"
    text = report.markdown(rows, FACTS, {**report.environment([], 0, "cpu"), "device": "Some CPU"})
    assert "| 1 | PyG / ours | W1 d16 fp16, forward | >= 45 | 65 | 52 | for an H200 |" in text


def test_slower_than_lists_the_cells_that_are_lost():
    assert [(mine.ms, other.peer) for mine, other in slower_than(ROWS)] == [(1.0, "SDPA cuDNN")]


def test_reports(tmp_path: Path):
    about = {**report.environment(["python -m experiments.benchmarks", "--quick"], 5), "device": "NVIDIA H200"}
    report.write(tmp_path, ROWS, FACTS, about)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(lines) == len(ROWS) + 1 and lines[0].startswith("section,workload,peer,what,status")
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["environment"]["seed"] == 5 and content["environment"]["command"].endswith("--quick")
    assert {"torch", "torch-geometric", "triton"} <= set(content["environment"]["packages"])
    assert {"device", "driver", "commit", "date"} <= set(content["environment"])
    assert len(content["rows"]) == len(ROWS) and content["rows"][1]["ms"] == 13.0
    text = (tmp_path / "benchmark.md").read_text()
    assert "| 1 | PyG / ours | W1 d16 fp16, forward | >= 45 | 65 | 52 | yes |" in text
    assert "| 3 | PyG / ours | W1 d16 fp16, forward+backward | >= 30 | 42 | 20 | **no** |" in text
    assert "| W6 4k | SDPA efficient | * | 🔴 missing: no / wheel | | | |" in text
    assert "| W1 d16 fp16 | PyG | forward | 13 (13 to 13) |  | 2.0e-03 | 52.00 |" in text
    assert "62,000,000 edges" in text and "* PyG: as shipped." in text
    assert "* W6 4k, forward: ours 1 ms, SDPA cuDNN 0.9 ms" in text
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_quartiles():
    timing = measure.summary([1.0, 2.0, 3.0, 4.0, 100.0])
    assert timing.median == 3 and timing.low == 1.5 and timing.high == 52 and timing.repetitions == 5
    assert measure.summary([2.0]) == (2.0, 2.0, 2.0, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_peak_sees_what_a_call_takes():
    from experiments.benchmarks.cpu import resident_peak

    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the high-water mark cannot be set back here")
    kept: list[Tensor] = []

    def call() -> None:
        kept.append(torch.ones(16 << 20))  # 64 MB that stay, ...
        torch.ones(32 << 20).sum()  # ... and 128 MB that go

    peak = resident_peak(call)
    assert 185 < peak < 230


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    common = ["--device", "cpu", "--size", "tiny", "--seconds", "0.01", "--out", str(tmp_path)]
    assert main(["--workloads", "W2", "--peers", "torch,SDPA", "--quick", *common]) == 0
    rows, facts = report.read([tmp_path / "W2.jsonl"])
    names = {f"W2 {what} (tiny, fp32)" for what in ("d16 fp16", "d8 fp16", "d8 fp16 edges")}
    edges = "W2 d8 fp16 edges (tiny, fp32)"
    assert {row.workload for row in rows if row.peer == "SDPA mask"} == names - {edges}  # no edge rows
    assert {row.peer for row in rows} == {"SDPA mask", "torch"}
    assert {row.workload for row in rows} == names == set(facts)
    assert all(row.status == "ok" and row.ms for row in rows)
    assert "benchmark.md" in capsys.readouterr().out
    assert json.loads((tmp_path / "benchmark.json").read_text())["targets"] == []  # what is in miniature is not judged
    assert "No target is about these workloads." in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize("name", ["", ".infsa", ".windows", ".epochs", ".connectivity", ".lists"])
def test_without_a_gpu_a_command_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    import importlib

    plain = name in ("", ".infsa", ".lists")
    module = importlib.import_module(f"experiments.benchmarks{name}" + (".__main__" if plain else ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out"
    asked = [] if name == ".lists" else ["--device", "cuda"]
    with pytest.raises(SystemExit) as ended:
        module.main([*asked, "--out", str(out)])
    told = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and "there is no CUDA device here; without one: --" in told
    assert not out.exists()


def test_a_run_that_is_interrupted_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from experiments.benchmarks import __main__ as command

    def run(self: object, sections: list[str]) -> list[str]:
        entry = {"row": vars(row("W2 d16 fp16", "torch"))}
        (tmp_path / "W2.jsonl").write_text(json.dumps(entry) + "\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(command._Sections, "run", run)
    assert main(["--workloads", "W2", "--out", str(tmp_path)]) == 130
    assert "| W2 d16 fp16 | torch | forward | 1 (1 to 1)" in (tmp_path / "benchmark.md").read_text()


# --- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["eager", "train"])
@pytest.mark.parametrize("name", ["pattern", "zinc"])
def test_epochs_compare_equal_networks(name: str, how: str, monkeypatch: pytest.MonkeyPatch):
    from experiments.benchmarks import epochs

    monkeypatch.delenv("GRAPHATTN_DATA", raising=False)
    rows = epochs.run(name, CPU, steps=2, batches=2, size=3, layers=2, how=how)
    assert [row.attention for row in rows] == ["ours", *epochs.NETWORKS[name].others]
    assert all(row.steps == 2 and row.low <= row.seconds <= row.high and len(row.losses) == 2 for row in rows)
    assert rows[1].ratio == pytest.approx(rows[1].seconds / rows[0].seconds)
    assert rows[0].losses[0] != rows[0].losses[1]
    text = epochs.markdown(rows)
    assert text.count(f"| {name} |") == len(rows) and ">= " in text


def test_epochs_refuse_networks_that_differ(monkeypatch: pytest.MonkeyPatch):
    from experiments.benchmarks import epochs, networks

    monkeypatch.delenv("GRAPHATTN_DATA", raising=False)
    monkeypatch.setattr(networks.PygOps, "heads_of", lambda self, x: 1.5 * x.unflatten(-1, (self.heads, -1)))
    with pytest.raises(RuntimeError, match="zinc: the losses with PyG's operations differ"):
        epochs.run("zinc", CPU, steps=1, batches=1, size=3, layers=1)
