"""Sparse vision transformers that learn from one dense teacher, at the same degree or the same cost, over seeds.

    python -m experiments.sparsifiner.compare --config experiments/sparsifiner/digits.yaml
    python -m experiments.sparsifiner.compare --config experiments/sparsifiner/cifar10.yaml --parallel 8 --out runs/x

For each seed: a dense teacher; stage 1, in which predictors learn its attention; then, for each keep rate, stage 2 with
the keys that the predictor, an oracle (the true attention), a window or chance choose, and token pruning at the cost of
Sparsifiner's attention. Everything gets the same epochs of stage 2, the dense network too. Networks are those of the
last epoch; nothing is chosen by test or validation accuracy.

Written into --out: compare.md, compare.json, compare.csv, compare.png, graphs.png (what patches read) and, in a folder
for each seed, weights and figures of each network. A second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.parallel import Job, run_jobs
from experiments.sparsifiner.stages import result_path
from experiments.sparsifiner.table import write_table
from experiments.sparsifiner.variants import KEEPS, KINDS, Variant, variants_of

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write table and pictures; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a configuration of this folder")
    parser.add_argument("--out", type=Path, help="folder of all results (default runs/sparsifiner-<configuration>)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds: 0, 1, ... (default 3)")
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEPS), help=f"keep rates, of {KEEPS}")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="what chooses (default all)")
    parser.add_argument("--parallel", type=int, default=1, help="processes side by side, over the visible GPUs")
    parser.add_argument("--quick", action="store_true", help="a few steps of a small network: does it run?")
    options = parser.parse_args(argv)
    if not options.config.is_file():
        parser.error(f"there is no file {options.config}")
    if options.seeds < 1 or options.parallel < 1:
        parser.error(f"--seeds and --parallel must be positive, got {options.seeds} and {options.parallel}")
    if not set(options.keep) <= set(KEEPS):
        parser.error(f"--keep must be among {KEEPS}, got {options.keep}")
    out = options.out or Path("runs") / f"sparsifiner-{options.config.stem}{'-quick' if options.quick else ''}"

    from experiments.sparsifiner.build import load_config

    config = load_config(options.config, options.quick)
    network = config["model"]["init_args"]["model"]["init_args"]
    wanted = ("dense", *options.kinds)
    variants = [v for v in variants_of(network) if v.kind in wanted and v.keep in (1.0, *options.keep)]
    failed = run_all(options.config, out, variants, options.seeds, options.parallel, options.quick)
    seeds = [seed for seed in range(options.seeds) if _finished(out, seed, variants)]
    if not seeds:
        print("compare: error: no seed is finished; the logs say why", file=sys.stderr)
        return 2
    text = write_table(config, out, variants, seeds, options.quick)
    if any(v.kind == "sparsifiner" for v in variants):
        from experiments.sparsifiner.look import look

        look(config, out, seeds[0], variants, options.quick)
    print(f"\n{text}\n{out / 'compare.md'}, .json, .csv, .png; graphs.png")
    return 1 if failed else 0


def run_all(config: Path, out: Path, variants: Sequence[Variant], seeds: int, parallel: int, quick: bool) -> list[Job]:
    """First the teachers, then everything that learns from them; the jobs that failed."""
    shared = ["--config", str(config), "--out", str(out), *(["--quick"] if quick else [])]

    def job(seed: int, part: str, names: Sequence[str]) -> Job:
        command = [sys.executable, "-m", "experiments.sparsifiner.stages", *shared, "--seed", str(seed), *names]
        return Job(f"seed {seed}, {part}", command, out / f"seed_{seed}" / f"{part}.log")

    from experiments.sparsifiner.variants import PREDICTORS

    first = ("teacher", *PREDICTORS)
    teachers = [
        job(seed, "teacher", ["teacher"])
        for seed in range(seeds)
        if not all(result_path(out, seed, name).is_file() for name in first)
    ]
    print(f"== {len(teachers)} teachers and their predictors", flush=True)
    failed = run_jobs(teachers, min(parallel, max(1, len(teachers))))
    missing = [(s, v.name) for s in range(seeds) for v in variants if not result_path(out, s, v.name).is_file()]
    missing = [(s, name) for s, name in missing if all(result_path(out, s, f).is_file() for f in first)]
    # Starting a process takes seconds, so each does several networks, yet all are busy to the end.
    size = max(1, min(4, len(missing) // (2 * parallel)))
    jobs = []
    for seed in range(seeds):
        names = [name for s, name in missing if s == seed]
        chunks = [names[n : n + size] for n in range(0, len(names), size)]
        jobs += [job(seed, f"{chunk[0]}-and-{len(chunk) - 1}-more", chunk) for chunk in chunks]
    print(f"== {len(missing)} networks in {len(jobs)} processes", flush=True)
    return failed + run_jobs(jobs, parallel)


def _finished(out: Path, seed: int, variants: Sequence[Variant]) -> bool:
    return all(result_path(out, seed, variant.name).is_file() for variant in variants)


if __name__ == "__main__":
    sys.exit(main())
