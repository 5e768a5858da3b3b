"""Runs of ``graphattn fit`` for several variants and seeds: whether they are finished, what they gave, and what is
written above it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from graphattn.errors import ConfigError
from graphattn.training.results import Results, read_results
from graphattn.training.versions import versions

__all__ = ["Table", "devices_of", "fit_here", "heading", "is_finished", "made_by", "read_runs", "shared_seeds"]

Table = dict[str, list[Results]]
"""Results of each variant, in the order of seeds."""


def is_finished(folder: Path, config: dict[str, Any], overrides: Sequence[str]) -> bool:
    """Whether a run has its results, of as many epochs as are asked for."""
    results, option = read_results(folder), "--trainer.max_epochs="
    asked = [int(text.removeprefix(option)) for text in overrides if text.startswith(option)]
    return results is not None and results.max_epochs >= (asked or [config["trainer"]["max_epochs"]])[-1]


def fit_here(arguments: list[str]) -> None:
    """A run in this process."""
    from graphattn.training import run

    if not isinstance(run("fit", arguments), Results):
        raise ConfigError("the run gave no results; leave out trainer.fast_dev_run")


def read_runs(each: Iterable[tuple[str, int]], folder: Callable[[str, int], Path]) -> dict[str, dict[int, Results]]:
    """What the runs that are finished gave, by variant and seed; an entry for every variant."""
    found: dict[str, dict[int, Results]] = {}
    for name, seed in each:
        results = read_results(folder(name, seed))
        found.setdefault(name, {})
        if results is not None:
            found[name][seed] = results
    return found


def shared_seeds(found: dict[str, dict[int, Results]]) -> Table:
    """The results of every seed that all have finished; nothing where there is none."""
    seeds = sorted(set.intersection(*map(set, found.values()))) if found else []
    return {name: [runs[seed] for seed in seeds] for name, runs in found.items()} if seeds else {}


def devices_of(table: Table) -> str:
    """The devices that the runs were on, in the order of the table."""
    return " and ".join(dict.fromkeys(r.device for results in table.values() for r in results))


def heading(text: str, quick: bool) -> str:
    """The heading of a table or picture; above what ``--quick`` gave, it says that these are no results."""
    return f"QUICK RUN, no results: {text}" if quick else text


def made_by(module: str) -> str:
    """The command of this process, a module of the experiments, its commit and versions, and the day: what stands under
    the heading of a table."""
    found, command = versions(), shlex.join([module, *sys.argv[1:]])
    return (
        f"`python -m {command}`, {date.today()}, commit {found['commit'] or 'unknown'}, torch {found['torch']}, triton "
        f"{found['triton'] or 'missing'}, torch-geometric {found['torch-geometric']}."
    )
