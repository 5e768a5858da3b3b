"""A binary head, a connectivity head, and one with bilateral losses, each without and with long range, over seeds.

    python -m experiments.connnet.compare --data horses --parallel 8
    python -m experiments.connnet.compare --data horses membranes nuclei generated --parallel 8 --out runs/connnet
    python -m experiments.connnet.compare --data generated --quick
    python -m experiments.connnet.compare --data nuclei --seeds 5 -- --trainer.max_epochs=50

What follows "--" goes to each run. With --parallel, runs go side by side, spread over the GPUs that are visible. Runs
are ordinary runs in <out>/<data>/; a second call goes on where the first one stopped. Written there: compare.md,
compare.json, compare.csv; examples.png, saliency.png, connectivity.png: photograph, truth and what each variant says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.connnet.runs import Plan, read_table, run_all
from experiments.connnet.table import write_table
from graphattn.errors import GraphattnError

__all__ = ["DATA", "main"]

FOLDER = Path(__file__).parent
DATA = ("horses", "membranes", "nuclei", "generated")
# A few batches on a CPU: shows that everything runs, not that anything is learned.
_QUICK = (
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=2",
    "--model.lr_scheduler.init_args.warmup_epochs=0",
    "--data.batch_size=4",
    "--data.eval_batch_size=2",
)
_QUICK_DATA = {
    "horses": ["--data.size=[80,112]"],
    "membranes": ["--model.train_transform.init_args.crop=[96,96]"],
    "nuclei": ["--model.train_transform.init_args.crop=[96,96]"],
    "generated": [
        '--data.options={"size": 32, "num_images": [320, 16, 32]}',
        "--data.batch_size=16",
        "--trainer.limit_train_batches=20",
    ],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write tables and pictures; 0 on success."""
    options = _parse(argv)
    shared = [] if torch.cuda.is_available() else ["--trainer.precision=32-true", "--trainer.accelerator=cpu"]
    plans = []
    for name in options.data:
        quick = [*_QUICK, *_QUICK_DATA[name]] if options.quick else []
        overrides = [*shared, *quick, *options.overrides]
        plans.append(Plan(FOLDER / f"{name}.yaml", options.out / name, options.seeds, overrides))
    try:
        failed = run_all(plans, options.parallel)
        for plan in plans:
            _report(plan, options.pictures, options.quick)
    except GraphattnError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    for name in failed:
        print(f"compare: failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def _report(plan: Plan, pictures: bool, quick: bool) -> None:
    table = read_table(plan)
    if not table:
        print(f"compare: {plan.out}: no seed has all its runs yet", file=sys.stderr)
        return
    text = write_table(table, plan.out, quick)
    (plan.out / "compare.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{plan.out / 'compare.md'}, .json, .csv", flush=True)
    if pictures:
        from experiments.connnet.look import draw

        print("\n".join(str(path) for path in draw(plan, quick)), flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", choices=DATA)
    parser.add_argument("--seeds", type=int, help="number of seeds: 0, 1, ... (default 3; with --quick 1)")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side (default 1)")
    parser.add_argument("--out", type=Path, help="folder (default runs/connnet; with --quick runs/connnet-quick)")
    parser.add_argument("--quick", action="store_true", help="a few batches of each: shows that it runs")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="tables only")
    parser.add_argument("overrides", nargs="*", help="after --: further arguments of graphattn fit")
    options = parser.parse_args(argv)
    options.seeds = (1 if options.quick else 3) if options.seeds is None else options.seeds
    options.out = options.out or Path("runs") / ("connnet-quick" if options.quick else "connnet")
    for name in ("seeds", "parallel"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
