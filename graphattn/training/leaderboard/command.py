"""What ``graphattn leaderboard`` does."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from graphattn._files import write_atomically
from graphattn.errors import ArgumentError, ConfigError, TrainingError
from graphattn.training.leaderboard.arguments import Arguments, parse_arguments
from graphattn.training.leaderboard.picture import plot_row
from graphattn.training.leaderboard.plan import Plan, make_plan
from graphattn.training.leaderboard.progress import display
from graphattn.training.leaderboard.row import Row, make_row
from graphattn.training.leaderboard.seeds import SeedRun, run_seeds
from graphattn.training.lock import only_writer
from graphattn.training.main import run
from graphattn.training.plots import metric_label

__all__ = ["run_leaderboard"]

_BATCHES = 2  # of a check
_CHECK = (
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    *(f"--trainer.limit_{stage}_batches={_BATCHES}" for stage in ("train", "val", "test")),
)


def run_leaderboard(argv: Sequence[str]) -> Row:
    """Train the seeds that are not finished and write the row.

    Args:
        argv: Arguments of ``graphattn leaderboard``.

    Returns:
        The row; ``leaderboard.md``, ``.json`` and ``.png`` lie in ``<root>/<name>``.

    Raises:
        ArgumentError: If the seeds are wrong, or fewer than the rules ask for without ``--draft``.
        ConfigError: If the configuration is wrong, or a seed's folder holds a run of another one or is in use.
        TrainingError: If a seed failed; the others are finished first.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the runs have stopped; its text says how to go on.
    """
    argv = list(argv)
    arguments = parse_arguments(argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "graphattn leaderboard starts its runs itself and must not be started by torchrun; for several GPUs in "
            "each run use --trainer.devices and --trainer.strategy=ddp"
        )
    command = shlex.join(["graphattn", "leaderboard", *argv])
    if arguments.check:
        return _check(arguments, command)
    plan = make_plan(arguments.fit, arguments.seeds, arguments.parallel)
    needed = plan.options.needed_seeds
    if len(plan.seeds) < needed and not arguments.draft:
        raise ArgumentError(
            f"the rules of {plan.options.dataset} ask for {needed} seeds, got {len(plan.seeds)}; "
            "--draft writes a row that is marked as a draft"
        )
    with only_writer(plan.folder):
        plan.check_folders()
        try:
            runs = _train(plan)
        except KeyboardInterrupt:
            done = f"{sum(plan.finished(seed) is not None for seed in plan.seeds)} of {len(plan.seeds)} seeds"
            raise KeyboardInterrupt(
                f"interrupted; {done} are finished. Go on with the same command:\n  {command}"
            ) from None
        row = None
        if arguments.draft or not _failed(runs):
            row = _row(plan, needed, command, why="asked for as a draft" if arguments.draft else "")
        if row is not None:
            _write(row, plan.folder)
            print(f"\n{row.to_markdown()}\n{plan.folder / 'leaderboard.md'}, .json, .png", flush=True)
    _complain(runs, row, command)
    assert row is not None
    return row


def _train(plan: Plan) -> list[SeedRun]:
    write_atomically(plan.folder / "config.yaml", lambda file: file.write(plan.text.encode()))
    names = f"seeds {', '.join(map(str, plan.seeds))}" if len(plan.seeds) > 1 else f"seed {plan.seeds[0]}"
    print(
        f"{plan.options.dataset}, {plan.options.method}: {names}, {len(plan.slots)} at a time; {plan.folder}",
        flush=True,
    )
    if not all(plan.finished(seed) for seed in plan.seeds):
        plan.prepare_data()
    with display(plan) as shown:
        return run_seeds(plan, shown)


def _failed(runs: Sequence[SeedRun]) -> list[SeedRun]:
    return [run for run in runs if run.state == "failed"]


def _row(plan: Plan, needed: int, command: str, why: str = "") -> Row | None:
    """The row of the seeds that have finished; ``None`` if none has."""
    results = [found for seed in plan.seeds if (found := plan.finished(seed)) is not None]
    if not results:
        return None
    wanted = max(needed, len(plan.seeds))
    if len(results) < wanted:
        why = f"{len(results)} of {wanted} seeds"
    label = metric_label(results[0].metric)
    return make_row(plan.options, results, label=label, mode=plan.mode, draft=why, command=command)


def _write(row: Row, folder: Path) -> None:
    write_atomically(folder / "leaderboard.json", lambda file: file.write(row.to_json().encode()))
    write_atomically(folder / "leaderboard.md", lambda file: file.write(row.to_markdown().encode()))
    plot_row(row, folder / "leaderboard.png")


def _complain(runs: Sequence[SeedRun], row: Row | None, command: str) -> None:
    failed = _failed(runs)
    if failed:
        lines = [f"  seed {run.seed}: {run.error}\n    {run.log}" for run in failed]
        no_row = "" if row else "; no row is written without them, but --draft writes one that is marked"
        raise TrainingError(
            f"{len(failed)} of {len(runs)} seeds failed{no_row}:\n"
            + "\n".join(lines)
            + f"\nTry them again with the same command; the others are kept:\n  {command}"
        )


def _check(arguments: Arguments, command: str) -> Row:
    """All the way from the configuration to the row on two batches, in a folder that is gone afterwards."""
    seed = (arguments.seeds or [0])[0]
    with tempfile.TemporaryDirectory(prefix="graphattn-check-") as root:
        fit = [*arguments.fit, f"--run.root={root}", *_CHECK]
        plan = make_plan(fit, [seed], parallel=1)
        run("fit", [*fit, f"--seed_everything={seed}"])  # in this process: an error keeps its place
        row = _row(plan, 1, command, why=f"a check on {_BATCHES} batches, its figures mean nothing")
        assert row is not None
        plot_row(row, plan.folder / "leaderboard.png")
    print(f"\n{row.to_markdown()}\ncheck passed: {' '.join(arguments.configs)}", flush=True)
    return row
