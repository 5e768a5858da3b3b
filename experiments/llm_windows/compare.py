"""Train in each window, run in each other: the 8 x 8 matrix, over several seeds, and what the networks read.

    python -m experiments.llm_windows.compare --task synthetic --parallel 12
    python -m experiments.llm_windows.compare --task cora --quick
    python -m experiments.llm_windows.compare --task synthetic --train-nodes 400 --out runs/llm-windows/synthetic-400

Each of the 8 windows and 3 seeds is a run of its own (experiments.llm_windows.train), side by side and spread over the
GPUs that are visible; a second call goes on where the first one stopped. Written into --out: compare.md, compare.json,
matrix.csv, matrix.png, and by experiments.llm_windows.look: look.md, look.json and its pictures.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.llm_windows.network import WINDOWS
from experiments.llm_windows.report import read_results, write
from experiments.llm_windows.tasks import TASKS, configuration, make_task
from experiments.llm_windows.train import folder_of
from experiments.parallel import Job, run_jobs
from graphattn.errors import GraphattnError
from graphattn.optional import require
from graphattn.training.versions import versions

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the table; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds: 0, 1, ... (default 3)")
    parser.add_argument("--out", type=Path, help="default runs/llm-windows/<task>, with -quick for --quick")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side (default 1; 3 a GPU are good)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--train-nodes", type=int, help="train on so many nodes only (scarce data)")
    parser.add_argument("--quick", action="store_true", help="small networks, few steps: to see that all runs")
    parser.add_argument("--no-look", action="store_true", help="leave out the diagnostics")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.parallel < 1:
        parser.error("--seeds and --parallel must be at least 1")
    out = options.out or Path("runs/llm-windows") / (options.task + ("-quick" if options.quick else ""))
    begin = time.perf_counter()
    try:
        references = _references(options)  # also fetches the data before several runs want it
    except GraphattnError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    failed = run_jobs(_jobs(options, out), options.parallel)
    results = read_results(out, options.seeds)
    if not results:
        print("compare: error: no run succeeded; see the logs above", file=sys.stderr)
        return 1
    facts = {
        "task": options.task,
        "quick": options.quick,
        "command": shlex.join(["python", "-m", "experiments.llm_windows.compare", *(argv or sys.argv[1:])]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": versions()["commit"] or "unknown",
        "references": references,
    }
    text = write(out, results, facts)
    if not options.no_look:
        from experiments.llm_windows.look import look

        print("== looking at what the trained networks read", flush=True)
        text += "\n" + look(out, results, options.device, options.quick)
    print(f"\n{text}\n{out}/compare.md, .json, .png; {time.perf_counter() - begin:.0f} s")
    for job in failed:
        print(f"compare: error: {job.name} failed; see {job.log}", file=sys.stderr)
    return 1 if failed else 0


def _jobs(options: argparse.Namespace, out: Path) -> list[Job]:
    """The runs that have no result yet."""
    jobs = []
    for seed in range(options.seeds):
        for window in WINDOWS:
            folder = folder_of(out, window, seed)
            if (folder / "result.json").is_file():
                continue
            command = [sys.executable, "-m", "experiments.llm_windows.train", f"--task={options.task}"]
            command += [f"--window={window}", f"--seed={seed}", f"--out={out}", f"--device={options.device}"]
            command += ["--quick"] if options.quick else []
            command += [] if options.train_nodes is None else [f"--train-nodes={options.train_nodes}"]
            jobs.append(Job(f"{options.task} {window}, seed {seed}", command, folder / "log.txt"))
    return jobs


def _references(options: argparse.Namespace) -> dict[str, float]:
    """What can be reached without a network, in %, on the test prompts of seed 0."""
    from experiments.llm_windows.synthetic import kinds_by_depth, told_by_identities, told_by_links
    from experiments.llm_windows.train import evaluation_trees

    task = make_task(configuration(options.task, quick=options.quick), 0, "cpu")
    if task.config["graph"] != "mixing":
        return {}
    test, train = (evaluation_trees(task, name) for name in ("test", "train"))
    y, known = (task.graph.y[trees.node[:, 0]] for trees in (test, train))
    linear = require("sklearn.linear_model", extra="images", purpose="a reference of the synthetic task")
    model = linear.LogisticRegression(max_iter=500)
    model.fit(kinds_by_depth(task.graph, train).flatten(1).numpy(), known.numpy())
    told = {
        "told by links": told_by_links(task.graph, test),
        "told by identities": told_by_identities(task.graph, train, test),
        "told by kinds at each depth": torch.from_numpy(
            model.predict(kinds_by_depth(task.graph, test).flatten(1).numpy())
        ),
    }
    return {name: 100.0 * float((answer == y).float().mean()) for name, answer in told.items()}


if __name__ == "__main__":
    sys.exit(main())
