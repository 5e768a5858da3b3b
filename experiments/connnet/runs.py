"""The runs of a comparison: which there are, running them, reading what they gave."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.connnet.variants import VARIANTS, with_variant
from experiments.parallel import Job, run_each
from experiments.runs import Table, fit_here, is_finished, read_runs, shared_seeds

__all__ = ["Plan", "Table", "read_table", "run_all"]


class Plan(NamedTuple):
    """One data set, its folder, and how it is run."""

    path: Path
    out: Path
    seeds: int
    overrides: Sequence[str]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as it stands in the file."""
        return yaml.safe_load(self.path.read_text(encoding="utf-8"))

    def folder(self, name: str, seed: int) -> Path:
        """The run of a variant and seed."""
        return self.out / _slug(name) / f"seed_{seed}"

    def each(self) -> Iterator[tuple[str, int]]:
        """Variants and seeds, seed by seed."""
        return ((name, seed) for seed in range(self.seeds) for name in VARIANTS)

    def arguments(self, name: str, seed: int) -> list[str]:
        """Of ``graphattn fit``."""
        place = [f"--run.name={_slug(name)}", f"--run.root={self.out}", "--run.if_exists=resume"]
        return ["--config", str(self._file(name)), f"--seed_everything={seed}", *place, *self.overrides]

    def is_finished(self, name: str, seed: int) -> bool:
        """Whether the run has its results, of as many epochs as are asked for."""
        return is_finished(self.folder(name, seed), self.config, self.overrides)

    def write(self) -> None:
        """The configuration of each variant."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name in VARIANTS:
            text = yaml.safe_dump(with_variant(self.config, name), sort_keys=False)
            self._file(name).write_text(text, encoding="utf-8")

    def _file(self, name: str) -> Path:
        return self.out / f"{_slug(name)}.yaml"


def run_all(plans: Sequence[Plan], parallel: int) -> list[str]:
    """Run what is not finished: in this process, or ``parallel`` processes side by side.

    Returns:
        Names of runs that failed (side by side; in this process the error is raised).
    """
    jobs = []
    for plan in plans:
        plan.write()
        for name, seed in plan.each():
            if plan.is_finished(name, seed):
                continue
            arguments = [*plan.arguments(name, seed), "--trainer.enable_progress_bar=false"]
            command = [sys.executable, "-m", "graphattn.cli", "fit", *arguments]
            log = plan.out / _slug(name) / f"seed_{seed}.log"
            jobs.append((Job(f"{plan.path.stem}: {name}, seed {seed}", command, log), arguments))
    return run_each(jobs, parallel, fit_here)


def read_table(plan: Plan) -> Table:
    """The results of every seed that all variants have finished."""
    return shared_seeds(read_runs(plan.each(), plan.folder))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z]+", "-", name.lower())
