"""Configurations with several attentions, at the same budget, each over several seeds.

    python -m experiments.infsa.compare --config experiments/infsa/digits.yaml
    python -m experiments.infsa.compare --config experiments/infsa/{mnist,cifar10}.yaml --parallel 12 --out runs/infsa
    python -m experiments.infsa.compare --config experiments/infsa/cora.yaml --seeds 10 -- --trainer.max_epochs=50

What follows "--" goes to each run. With --parallel, they go side by side, spread over the visible GPUs. They are
ordinary runs below --out (several configurations: in a folder each); a second call goes on where the first one stopped.
Written beside them: compare.md, compare.json, compare.csv, compare.png; for images also what the trained networks read
(cosines to the Perron vectors of each layer, deletion.png, relevance.png).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.infsa.runs import Plan, read_table, run_all
from experiments.infsa.table import write_table
from experiments.infsa.variants import check_network
from graphattn.errors import GraphattnError

__all__ = ["main"]

_QUICK = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=3")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the tables; 0 on success."""
    options = _parse(argv)
    name = f"{_name(options.config[0])}-compare" if len(options.config) == 1 else "infsa-compare"
    out = options.out or Path("runs") / (f"{name}-quick" if options.quick else name)
    overrides = [*(_QUICK if options.quick else ()), *options.overrides]
    plans = [
        Plan(path, out if len(options.config) == 1 else out / path.stem, options.seeds, overrides)
        for path in options.config
    ]
    try:
        for plan in plans:
            check_network(plan.config, str(plan.path))
        failed = run_all(plans, options.parallel)
        for plan in plans:
            _report(plan, options.looks, options.quick)
    except GraphattnError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


def _report(plan: Plan, looks: bool, quick: bool) -> None:
    """Table, and what the trained networks read, from the runs that are finished."""
    table = read_table(plan)
    if not table:
        print(f"== {plan.out}: the first variant has no finished run, so there is no table", flush=True)
        return
    text = write_table(table, plan.out, quick)
    if looks and plan.of_images:
        from experiments.infsa.look import look

        print(f"== looking at what the trained networks of {plan.out} read", flush=True)
        text += "\n" + look(table, plan.out, quick)
    (plan.out / "compare.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{plan.out / 'compare.md'}, .json, .csv, .png", flush=True)


def _name(path: Path) -> str:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config.get("run", {}).get("name") or path.stem


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, nargs="+", help="configurations of this folder")
    parser.add_argument("--seeds", type=int, help="number of seeds: 0, 1, ... (default 3; --quick: 1)")
    parser.add_argument("--out", type=Path, help="folder of runs and results (default runs/<name>-compare)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--quick", action="store_true", help="two epochs of three batches, to try it out")
    parser.add_argument("--no-looks", dest="looks", action="store_false", help="leave out what the networks read")
    parser.add_argument("overrides", nargs="*", help="after --: further arguments of graphattn fit")
    options = parser.parse_args(argv)
    options.seeds = options.seeds if options.seeds is not None else (1 if options.quick else 3)
    for option in ("seeds", "parallel"):
        if getattr(options, option) < 1:
            parser.error(f"--{option} must be at least 1, got {getattr(options, option)}")
    for path in options.config:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    return options


if __name__ == "__main__":
    sys.exit(main())
