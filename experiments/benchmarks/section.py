"""One section of workloads in a process of its own: rows go to a file as they come, so that a crash loses one row."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks import cpu, measure
from experiments.benchmarks.measure import Effort, Run, Timing
from experiments.benchmarks.peers import Peer, Unsupported
from experiments.benchmarks.reference import Truth, relative_error, truth_of
from experiments.benchmarks.row import Options, Row
from experiments.benchmarks.workloads import Spec, Workload
from graphattn.errors import BackendError

__all__ = ["read_journal", "run_section", "warm_section"]


_PATIENCE = 4


def run_section(specs: list[Spec], peers: list[Peer], options: Options, out: Path) -> None:
    """Measure every workload with every peer that is for it; what ``out`` holds already is not repeated."""
    journal = _Journal(out)
    device = torch.device(options.device)
    for spec in specs:
        mine = [peer for peer in peers if spec.section in peer.sections]
        if all(journal.has(spec.name, peer.name) for peer in mine):
            continue
        try:
            work = spec.make(device, options.seed, options.size)
            truth = truth_of(work)
        except Exception as error:
            for peer in mine:
                journal.write(_failure(spec, peer, error, "the workload could not be made: "))
            continue
        journal.facts(spec, work)
        turns: list[cpu.Turn] = []
        for peer in mine:
            if journal.has(spec.name, peer.name) or not peer.applies(work):
                continue
            journal.begin(spec, peer)
            try:
                with measure.time_limit(options.limit):
                    for row in _rows(spec, work, peer, truth, options, turns):
                        journal.write(row)
            except Exception as error:
                journal.write(_failure(spec, peer, error))
            _forget()
        for row in cpu.take_turns(turns, options):
            journal.write(row)
        del work, truth, turns
        _forget()


def warm_section(specs: list[Spec], peers: list[Peer], options: Options) -> None:
    """Call once whatever compiles, so that compiled code is on disk before anything is timed.

    Sections do this beside each other, so it may take several times as long as it will alone.
    """
    device = torch.device(options.device)
    for spec in specs:
        mine = [peer for peer in peers if spec.section in peer.sections and peer.compiles]
        if not mine:
            continue
        work = spec.make(device, options.seed, options.size)
        for peer in mine:
            if not peer.applies(work):
                continue
            try:
                with measure.time_limit(_PATIENCE * options.limit):
                    for run in measure.passes(work, peer.build(work), backward=peer.backward).values():
                        run()
            except Exception as error:  # it fails again, and is then a row
                print(f"warm {spec.name}, {peer.name}: {type(error).__name__}", file=sys.stderr)
            _forget()


def _rows(
    spec: Spec, work: Workload, peer: Peer, truth: Truth, options: Options, turns: list[cpu.Turn]
) -> Iterator[Row]:
    """Every pass, and what belongs to one peer only."""
    for what, run in measure.passes(work, peer.build(work), backward=peer.backward).items():
        row = Row(spec.section, spec.name, peer.name, what, text=peer.note)
        try:
            yield from _measured(row, spec, work, run, truth, options, turns)
        except TimeoutError:
            raise
        except Exception as error:
            yield _failure(spec, peer, error, what=what)
    if peer.name == "ours" and work.q.is_cuda and spec.section == "W1":
        row = Row(spec.section, spec.name, peer.name, "set-up", text="first call on a new graph less a later one")
        yield row.with_time(_set_up(work, peer, options.effort))


def _measured(
    row: Row, spec: Spec, work: Workload, run: Run, truth: Truth, options: Options, turns: list[cpu.Turn]
) -> Iterator[Row]:
    """Correctness, memory, time of one pass. On the CPU the time is taken later, when peers take turns."""
    row.error = _roof_error(work, run()[0]) if row.peer == "gather roof" else measure.check(work, run, truth)
    if not row.error <= measure.TOLERANCE[work.q.dtype]:
        row.status, row.text = "wrong", f"relative error {row.error:.2g}: not timed"
        yield row
        return
    if not work.q.is_cuda:
        turns.append(cpu.Turn(row, run))
        return
    row.peak_mb = measure.peak_mb(run)
    yield row.with_time(measure.timed(run, options.effort))
    if spec.cuda_graph:
        graph = replace(row, what=f"{row.what} (graph)", ms=None, peak_mb=None)
        try:
            graph.with_time(measure.replayed(run, options.effort))
        except Exception as error:
            torch.cuda.synchronize()
            graph.status, graph.text = _reason(error)
            graph.ms = graph.ms_low = graph.ms_high = None
        yield graph


def _set_up(work: Workload, peer: Peer, effort: Effort) -> Timing:
    """Both sorted views of the edges and the schedule, from ``edge_index`` on the device: forward+backward on a graph
    that nobody has used, less the same on one that was."""

    def first() -> None:
        measure.passes(work, peer.build(work), backward=True)["forward+backward"]()

    later = measure.passes(work, peer.build(work), backward=True)["forward+backward"]
    fresh, used = measure.timed(first, effort), measure.timed(later, effort)
    return Timing(*(x - used.median for x in fresh[:3]), fresh.repetitions)


def _roof_error(work: Workload, found: Any) -> float:
    """Of the rows that are no hub's, which is what the roof kernel leaves whole."""
    from experiments.benchmarks.peers.roof import CHUNK, sums

    whole = work.graph.rowptr.diff() <= CHUNK
    return relative_error(found[whole], sums(work)[whole])


def _failure(spec: Spec, peer: Peer, error: Exception, prefix: str = "", what: str = "*") -> Row:
    status, text = _reason(error)
    return Row(spec.section, spec.name, peer.name, what, status, prefix + text)


def _reason(error: Exception) -> tuple[str, str]:
    """Status and text of a row that has no time."""
    line = (str(error).strip().splitlines() or [""])[0][:200]
    kinds = {
        "missing": ImportError,
        "unsupported": (Unsupported, BackendError),
        "out of memory": torch.OutOfMemoryError,
        "time limit": TimeoutError,
    }
    for status, kind in kinds.items():
        if isinstance(error, kind):  # type: ignore[arg-type]
            return status, line
    return "failed", f"{type(error).__name__}: {line}"


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Journal:
    """Lines of JSON: what began, rows, and facts about workloads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[tuple[str, str]] = set()
        for entry in read_journal(path):
            if "begin" in entry:
                self.done.add(tuple(entry["begin"]))

    def has(self, workload: str, peer: str) -> bool:
        return (workload, peer) in self.done

    def begin(self, spec: Spec, peer: Peer) -> None:
        self.done.add((spec.name, peer.name))
        self._line({"begin": [spec.name, peer.name]})

    def write(self, row: Row) -> None:
        self._line({"row": asdict(row)})
        took = f"{row.ms:10.4f} ms" if row.ms is not None else f"{row.status}: {row.text}"
        print(f"{row.workload:26s} {row.peer:20s} {row.what:26s} {took}", flush=True)

    def facts(self, spec: Spec, work: Workload) -> None:
        self._line({"facts": {"workload": spec.name, **work.facts}})

    def _line(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Its entries; none if there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
