"""Training on drawn sub-graphs (SSA) beside dense training, tested densely and as ensembles, over seeds.

    python -m experiments.ssa.compare --task pattern --seeds 3 --parallel 8 --out runs/ssa-pattern
    python -m experiments.ssa.compare --task text --quick --out runs/quick

Tasks: pattern, cluster, images (cifar10 where the data are, else digits), mnist, text. A network for each share of the
sources and each seed; a fork of each goes on densely for the last tenth of the epochs (at least one). Then, alone on
its device, the time and the peak memory of a training step. Written: compare.md, compare.json, compare.csv,
compare.png, density.png. A second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.parallel import Job, run_each
from experiments.ssa.table import Table, markdown, picture, write_csv
from experiments.ssa.work import KEEPS, Variant, part_path
from experiments.ssa.work import main as work_here

__all__ = ["TASKS", "main", "variants_of"]

TASKS = ("pattern", "cluster", "images", "cifar10", "mnist", "digits", "text")
LOCAL = 0.25  # the share at which local windows are tried, where tokens stand in a line or a grid


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the table; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument(
        "--out", type=Path, help="folder of all files (default runs/ssa-<task>, with -quick for --quick)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds: 0, 1, ... (default 3)")
    parser.add_argument("--parallel", type=int, default=1, help="networks that train side by side, over all GPUs")
    parser.add_argument("--epochs", type=int, help="instead of the configuration's")
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEPS), help=f"shares that are kept, of {KEEPS}")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few steps, one seed")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.parallel < 1:
        parser.error("--seeds and --parallel must be at least 1")
    if not set(options.keep) <= set(KEEPS):
        parser.error(f"--keep must be among {KEEPS}, got {options.keep}")
    out = options.out or Path("runs") / f"ssa-{options.task}{'-quick' if options.quick else ''}"
    seeds = 1 if options.quick else options.seeds
    out.mkdir(parents=True, exist_ok=True)
    failed = _train(options, out, seeds)
    table = read_table(out, variants_of(options.task, options.keep), seeds)
    if not table.parts:
        print("compare: error: no seed has all its networks", file=sys.stderr)
        return 2
    costs = _costs(options, out)
    text = markdown(table, costs, options.task)
    (out / "compare.md").write_text(text, encoding="utf-8")
    whole = {"parts": table.parts, "costs": costs}
    (out / "compare.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    write_csv(table, out / "compare.csv")
    picture(table, out / "compare.png")

    from experiments.ssa.density import DRAWS, draw

    draw(out / "density.png", 10 if options.quick else DRAWS)
    print(f"\n{text}\n{out / 'compare.md'}, .json, .csv, .png, density.png")
    for name in failed:
        print(f"compare: failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def variants_of(task: str, keeps: Sequence[float] = KEEPS) -> list[Variant]:
    """Dense training first, and in any case."""
    found = [Variant(keep) for keep in KEEPS if keep in keeps or keep == 1.0]
    has_windows = task not in ("pattern", "cluster") and LOCAL in keeps
    return [*found, Variant(LOCAL, "local")] if has_windows else found


def read_table(out: Path, variants: Sequence[Variant], seeds: int) -> Table:
    """Of the seeds that all variants have finished."""
    found: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    for seed in range(seeds):
        paths = [part_path(out, variant, seed) for variant in variants]
        if all(path.is_file() for path in paths):
            for variant, path in zip(variants, paths, strict=True):
                found[variant.name].append(json.loads(path.read_text(encoding="utf-8")))
    return Table(found if any(found.values()) else {})


def _train(options: argparse.Namespace, out: Path, seeds: int) -> list[str]:
    shared = ["--task", options.task, "--out", str(out)]
    shared += ["--quick"] if options.quick else []
    shared += [] if options.epochs is None else ["--epochs", str(options.epochs)]
    jobs: list[tuple[Job, list[str]]] = []
    for seed in range(seeds):
        for variant in variants_of(options.task, options.keep):
            path = part_path(out, variant, seed)
            if not path.is_file():
                arguments = [*shared, "--seed", str(seed), "--keep", str(variant.keep), "--scheme", variant.scheme]
                command = [sys.executable, "-m", "experiments.ssa.work", *arguments]
                jobs.append((Job(f"{variant.name}, seed {seed}", command, path.with_suffix(".log")), arguments))
    if not jobs:
        return []
    from experiments.ssa.build import data_of, load_config

    print(f"== {options.task}: data, then {len(jobs)} networks", flush=True)
    data_of(load_config(options.task, quick=options.quick), 0).prepare_data()  # once, ahead of all
    return run_each(jobs, options.parallel, work_here)


def _costs(options: argparse.Namespace, out: Path) -> dict[str, dict[str, float | None]]:
    from experiments.ssa.costs import measure_steps

    path = out / "costs.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    print("== time and memory of a training step", flush=True)
    found = measure_steps(options.task, variants_of(options.task, options.keep), quick=options.quick)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    sys.exit(main())
