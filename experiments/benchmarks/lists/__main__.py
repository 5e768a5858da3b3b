"""Graphs that are drawn and graphs that are learned, beside PyTorch's dense attention: one run, one GPU.

    python -m experiments.benchmarks.lists --out results/lists

Sections: ``ssa`` (a random sub-graph drawn in every step), ``blocks`` (64 targets share the keys that a score selects,
selection included), ``masks`` (a choice for each target: 197 tokens, and long sequences). What computes wrong values
gets no time. Every peer is timed eagerly, in a CUDA graph of its own, and in one with 8 calls in a row, as a captured
step of a network has them: a graph of one empty kernel takes some 10 us. ``--quick``: smaller sizes; without a GPU, the
checks alone, which need ``--quick``.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

import torch

from experiments.benchmarks import ONE_THREAD
from experiments.benchmarks.device import check_device
from experiments.benchmarks.lists.jobs import SECTIONS
from experiments.benchmarks.lists.report import line, ratios, write
from experiments.benchmarks.lists.rows import Row, measured
from experiments.benchmarks.measure import Effort
from experiments.benchmarks.report import environment

__all__ = ["main"]


def main(command: list[str] | None = None) -> int:
    """Run, print, write; 1 if something computed wrong values."""
    command = sys.argv[1:] if command is None else command
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.lists", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for lists.json, lists.csv and lists.md")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--one-thread", action="store_true", help=ONE_THREAD)
    arguments = parser.parse_args(command)
    if not arguments.quick:
        check_device(parser, "cuda", "--quick checks the values at small sizes and times nothing")
    if arguments.one_thread:
        torch.autograd.set_multithreading_enabled(False)
    torch.manual_seed(0)
    effort = Effort(seconds=0.05) if arguments.quick else Effort(seconds=0.25)
    about = environment(["python -m experiments.benchmarks.lists", *command], 0)
    rows: list[Row] = []
    begin = time.perf_counter()
    for name in arguments.sections:
        for job in SECTIONS[name](arguments.quick):
            try:
                for row in measured(job, effort):
                    rows.append(row)
                    print(line(row), flush=True)
            except Exception as failure:
                traceback.print_exc()
                text = f"{type(failure).__name__}: {failure}"[:200]
                rows.append(Row(job.section, job.case, job.peer, "*", "failed", text=text))
            write(arguments.out, rows, ratios(rows), about)  # what is there stays there
    lines = ratios(rows)
    print("\n".join([*lines, f"{time.perf_counter() - begin:.0f} s"]))
    write(arguments.out, rows, lines, about)
    return int(any(row.mode == "failed" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
