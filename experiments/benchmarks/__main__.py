"""The command: ``python -m experiments.benchmarks``. Each section of workloads runs in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.benchmarks import ONE_THREAD

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_RESTARTS = 3  # of a section whose process died


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if every section ran to its end."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.worker:
        return _work(options)

    import torch

    from experiments.benchmarks import peers, report, workloads
    from experiments.benchmarks.device import check_device

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(parser, device, "--device cpu measures the CPU's workload, --size tiny tries the others out")
    if options.workloads is None and device == "cpu" and options.size == "full":
        options.workloads = "CPU"  # the other workloads are for a GPU
    try:
        specs = workloads.find(_names(options.workloads), quick=options.quick, size=options.size)
        peers.find(_names(options.peers))
    except ValueError as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    out = options.out or Path("runs") / f"benchmark-{datetime.now():%Y%m%d-%H%M%S}"
    out.mkdir(parents=True, exist_ok=True)
    sections = list(dict.fromkeys(spec.section for spec in specs))
    journals = [out / f"{section}.jsonl" for section in sections]
    if not options.go_on:
        for path in journals:
            path.unlink(missing_ok=True)
    # "timeout" ends a run as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    running = _Sections(options, out, device)
    try:
        code = 1 if running.run(sections) else 0
    except KeyboardInterrupt:  # what was measured is worth a report
        running.stop()
        code = 130
    finally:
        signal.signal(signal.SIGTERM, before)
    rows, facts = report.read(journals)
    command = ["python -m experiments.benchmarks", *arguments]
    report.write(out, rows, facts, report.environment(command, options.seed, device))
    print(f"\n{(out / 'benchmark.md').read_text(encoding='utf-8')}\n{out}/benchmark.md, .json, .png, rows.csv")
    return code


class _Sections:
    """The processes, one after another; the next one imports torch while the present one measures."""

    def __init__(self, options: argparse.Namespace, out: Path, device: str) -> None:
        self.options, self.out, self.device = options, out, device
        self.processes: list[subprocess.Popen[str]] = []

    def run(self, sections: list[str]) -> list[str]:
        """The sections that did not end well."""
        begin = time.perf_counter()
        if self.device == "cuda" and not self.options.no_warm:
            self._warm(sections)
            print(f"== compiled after {time.perf_counter() - begin:.0f} s", flush=True)
        failed = []
        waiting = self._start(sections[0])
        for number, section in enumerate(sections):
            process = waiting
            self._release(process)
            if number + 1 < len(sections):
                waiting = self._start(sections[number + 1])
            if not self._finish(section, process):
                failed.append(section)
            print(f"== {section} done after {time.perf_counter() - begin:.0f} s", flush=True)
        return failed

    def stop(self) -> None:
        """End the processes that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _warm(self, sections: list[str]) -> None:
        processes = [self._start(section, "--warm") for section in sections if section != "CPU"]
        for process in processes:
            self._release(process)
        for process in processes:
            self._wait(process)

    def _finish(self, section: str, process: subprocess.Popen[str]) -> bool:
        for _ in range(_RESTARTS):
            code = self._wait(process)
            if code == 0:
                return True
            self._mourn(section, code)
            process = self._start(section)
            self._release(process)
        code = self._wait(process)
        if code != 0:
            self._mourn(section, code)
        return code == 0

    def _mourn(self, section: str, code: int | None) -> None:
        """Note which item took the process with it."""
        from experiments.benchmarks.section import read_journal

        path = self.out / f"{section}.jsonl"
        entries = read_journal(path)
        begun = [entry["begin"] for entry in entries if "begin" in entry]
        if begun:
            why = "the process outran its time limit" if code is None else f"the process died with exit code {code}"
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"lost": [*begun[-1], why]}) + "\n")
        print(f"== {section}: exit code {code} in {begun[-1] if begun else 'its start'}", flush=True)

    def _start(self, section: str, *more: str) -> subprocess.Popen[str]:
        options = self.options
        command = [sys.executable, "-m", "experiments.benchmarks", "--worker", "--workloads", section, *more]
        device = "cpu" if section == "CPU" else self.device
        command += ["--device", device, "--seed", str(options.seed), "--size", options.size]
        command += ["--seconds", str(options.seconds), "--limit", str(options.limit), "--out", str(self.out.resolve())]
        command += ["--peers", options.peers] if options.peers else []
        command += ["--quick"] if options.quick else []
        command += ["--one-thread"] if options.one_thread else []
        path = os.pathsep.join([str(_ROOT), *(str(_ROOT / name) for name in ("kernels", "datasets"))])
        inherited = os.environ.get("PYTHONPATH")
        env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{inherited}" if inherited else path}
        env.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # sections compile beside each other
        process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=_ROOT, env=env)
        self.processes.append(process)
        return process

    def _release(self, process: subprocess.Popen[str]) -> None:
        try:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at its start, which _wait sees

    def _wait(self, process: subprocess.Popen[str]) -> int | None:
        try:
            return process.wait(self.options.section_limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None


def _work(options: argparse.Namespace) -> int:
    """One section, in this process."""
    import torch

    import graphattn  # noqa: F401  # what takes long, while the section before this one measures
    from experiments.benchmarks import peers, section, workloads
    from experiments.benchmarks.measure import Effort
    from experiments.benchmarks.row import Options

    sys.stdin.readline()  # the word to begin
    if options.device == "cpu":
        torch.set_num_threads(2)
    if options.one_thread:
        torch.autograd.set_multithreading_enabled(False)
    specs = workloads.find(_names(options.workloads), quick=options.quick, size=options.size)
    effort = Effort(options.seconds / 4, 5, 30, 2) if options.quick else Effort(options.seconds)
    found = Options(options.device, options.seed, options.size, effort, options.limit)
    chosen = peers.find(_names(options.peers))
    if options.warm:
        section.warm_section(specs, chosen, found)
    else:
        section.run_section(specs, chosen, found, options.out / f"{options.workloads}.jsonl")
    return 0


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__)
    add: Any = parser.add_argument
    add("--workloads", help="sections, as in W1,W2 (default: all of W1 to W6 on a GPU, CPU elsewhere)")
    add("--peers", help='names, as in "ours,PyG,SDPA" (default: all)')
    add("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    add("--quick", action="store_true", help="fewer repetitions, and the largest workloads left out")
    add("--out", type=Path, help="folder of the results (default: runs/benchmark-<date>)")
    add("--seed", type=int, default=0, help="of graphs and tensors (default 0)")
    add("--seconds", type=float, default=0.4, help="about how long one measurement repeats (default 0.4)")
    add("--limit", type=float, default=60.0, help="seconds that one workload with one peer may take (default 60)")
    add(
        "--section-limit",
        type=float,
        default=900.0,
        help="seconds after which the process of a section is ended, and the item it is in given up (default 900)",
    )
    add("--size", choices=("full", "tiny"), default="full", help="tiny: the workloads in miniature, for tests")
    add("--no-warm", action="store_true", help="do not compile everything ahead")
    add("--go-on", action="store_true", help="keep the rows that --out holds already and measure the others")
    add("--one-thread", action="store_true", help=ONE_THREAD)
    for name in ("--worker", "--warm"):
        add(name, action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
