"""Time and memory of InfSA and Linear-InfSA over the number of tokens, beside PyTorch's fused softmax attention.

    python -m experiments.benchmarks.infsa --out runs/infsa          # one GPU, about four minutes

Operation against operation in one run (eager and as CUDA graphs), then whole vision transformers up to 331,776 tokens
(an image of 9216 x 9216 pixels) and training steps on an image of 4096 x 4096. Written into the folder: infsa.md with
the targets and whether they are met, infsa.json, infsa.png, rows.csv.

    python -m experiments.benchmarks.infsa --parts edges --device cpu --out runs/edges          # a CPU, under a minute

Propagators over the number of edges of a sparse graph: the time of each product and what backward keeps; edges.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.benchmarks import ONE_THREAD
from experiments.benchmarks import report as environment
from experiments.benchmarks.device import check_device
from experiments.benchmarks.infsa import edges, networks, operations, report
from experiments.benchmarks.infsa.stopwatch import Stopwatch
from experiments.benchmarks.measure import Effort

__all__ = ["main"]

_TOKENS = "1024,4096,8192,16384,65536,331776"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 if everything was right and in time."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--tokens", help=f"numbers of tokens, squares (default {_TOKENS}; operations only: 8192)")
    parser.add_argument(
        "--parts", default="operations,networks", help="of operations, networks and edges (default: %(default)s)"
    )
    parser.add_argument("--training", type=int, help="tokens of the training steps (default 65536)")
    parser.add_argument("--seconds", type=float, default=0.15, help="about how long one measurement repeats")
    parser.add_argument("--limit", type=float, default=40.0, help="seconds that one row may take")
    parser.add_argument(
        "--device", default="cuda", help="cuda; cpu for --parts edges, or to try the others out with --quick"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions of small sizes")
    parser.add_argument("--one-thread", action="store_true", help=ONE_THREAD)
    options = parser.parse_args(arguments)
    device = check_device(
        parser, options.device, "--device cpu --quick tries it out, --device cpu --parts edges measures"
    )
    tokens = [int(n) for n in (options.tokens or ("64,256" if options.quick else _TOKENS)).split(",")]
    effort = Effort(options.seconds, 3, 5 if options.quick else 60, 2)
    parts = set(options.parts.split(","))
    if not parts <= {"operations", "networks", "edges"}:
        parser.error(f"--parts must be of operations, networks and edges, got {options.parts!r}")
    options.out.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch(options.out, device, effort, options.limit)
    begin = time.perf_counter()
    if options.one_thread:
        torch.autograd.set_multithreading_enabled(False)
    about = environment.environment(["python -m experiments.benchmarks.infsa", *arguments], 0, device.type)
    if "edges" in parts:
        print(edges.run(options.out, device, effort, about, quick=options.quick), flush=True)
        print(f"== edges done after {time.perf_counter() - begin:.0f} s: {options.out}/edges.md, .json, .csv, .png")
    if parts == {"edges"}:
        return 0
    rate = operations.copy_rate(effort) if device.type == "cuda" else None
    if "operations" in parts:
        for n in tokens:
            operations.operations(n, watch)
        print(f"== operations done after {time.perf_counter() - begin:.0f} s", flush=True)
    if "networks" in parts:
        width = 64 if options.quick else 1024
        networks.training_step(options.training or (64 if options.quick else 65_536), watch, width=width)
        for n in tokens:
            if int(n**0.5) ** 2 == n:
                networks.forwards(n, watch, width=width)
        print(f"== networks done after {time.perf_counter() - begin:.0f} s", flush=True)
    print("\n" + report.write(options.out, watch.rows, about, rate))
    print(f"{options.out}/infsa.md, .json, .png, rows.csv")
    return 0 if all(row.status in ("ok", "time limit") for row in watch.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
