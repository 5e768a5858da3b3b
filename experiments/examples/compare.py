"""Every example with PyG's layers and with ours: one import swapped, the same parameters and seeds.

    python -m experiments.examples.compare                      # all, on the GPU where there is one
    python -m experiments.examples.compare --device cpu cora-gat zinc-gps
    python -m experiments.examples.compare --quick              # very short training
    python -m experiments.examples.compare --seeds 0            # no training: time and memory alone
    python -m experiments.examples.compare --quick --synthetic  # on generated data: does everything run?

From a checkout. It reads each script's source, replaces ``from graphattn.conv import`` by ``from torch_geometric.nn
import`` in its one line, and runs both. Results (``compare.md``, ``.json``, ``.png``) go to ``--out``. A data set that
is neither under GRAPHATTN_DATA nor can be downloaded is skipped with a message.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch

from experiments.examples.paired import report
from experiments.examples.paired.cases import CASES, LENGTHS
from experiments.examples.paired.run import Effort, Pair, run_case
from graphattn.errors import DataError, MissingPackageError


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; 0 if anything was compared."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    known = {case.name: case for case in CASES}
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"there is no example {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    if options.seeds < 0:
        parser.error(f"--seeds must not be negative, got {options.seeds}")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    length = options.length or ("full" if torch.device(device).type == "cuda" else "short")
    seconds, least = (0.2, 5) if length == "quick" else (3.0, 10)
    effort = Effort(options.seeds, seconds, least, length, options.synthetic, not options.no_memory)
    out = options.out or Path("runs") / f"examples-{datetime.now():%Y%m%d-%H%M%S}"
    command = " ".join(["python -m experiments.examples.compare", *arguments])
    facts = report.about(command, options.seeds, device, length)
    pairs: list[Pair] = []
    skipped: dict[str, str] = {}
    for name in options.names or known:
        begin = time.perf_counter()
        try:
            pairs.append(run_case(known[name], device, effort))
        except (DataError, MissingPackageError) as error:
            skipped[name] = str(error).splitlines()[0]
            print(f"== {name} skipped: {skipped[name]}", flush=True)
            continue
        print(f"== {name}: {time.perf_counter() - begin:.0f} s", flush=True)
        report.write(out, pairs, skipped, facts)  # what is known so far survives Ctrl-C
    report.write(out, pairs, skipped, facts)
    print(f"\n{(out / 'compare.md').read_text(encoding='utf-8')}\n{out}/compare.md, .json, .png")
    return 0 if pairs else 1


def _parser() -> argparse.ArgumentParser:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        prog="python -m experiments.examples.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"which (default: all): {', '.join(names)}")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds 0, 1, ... (default 3); 0: no training")
    parser.add_argument("--length", choices=LENGTHS, help="of training and timing (default: full on cuda, else short)")
    parser.add_argument("--quick", action="store_const", const="quick", dest="length", help="--length quick")
    parser.add_argument("--synthetic", action="store_true", help="generated data; scores mean nothing")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory (on the CPU: a process each)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/examples-<date>)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
