"""The runs of a comparison: which there are, running them, reading what they gave."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.infsa.variants import variants_of, with_variant
from experiments.parallel import Job, run_jobs
from experiments.runs import Table, fit_here, is_finished, read_runs, shared_seeds

__all__ = ["Plan", "Table", "prepare", "read_table", "run_all"]


class Plan(NamedTuple):
    """One configuration, its folder, and how it is run."""

    path: Path
    out: Path
    seeds: int
    overrides: Sequence[str]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as it stands in the file."""
        return yaml.safe_load(self.path.read_text(encoding="utf-8"))

    @property
    def of_images(self) -> bool:
        """Whether the examples are images."""
        return self.config["data"]["class_path"].endswith("ImageDataModule")

    def folder(self, key: str, seed: int) -> Path:
        """The run of a variant and seed."""
        return self.out / key / f"seed_{seed}"

    def each(self) -> Iterator[tuple[str, int]]:
        """Variants and seeds, seed by seed."""
        variants = variants_of(self.config)
        return ((key, seed) for seed in range(self.seeds) for key in variants)

    def arguments(self, key: str, seed: int) -> list[str]:
        """Of ``graphattn fit``. Where the data have numbered splits, each seed takes another."""
        place = [f"--run.name={self.out.name}/{key}", f"--run.root={self.out.parent}", "--run.if_exists=resume"]
        split = ["--data.split=" + str(seed)] if "split" in self.config["data"].get("init_args", {}) else []
        return ["--config", str(self._file(key)), f"--seed_everything={seed}", *place, *split, *self.overrides]

    def is_finished(self, key: str, seed: int) -> bool:
        """Whether the run has its results, of as many epochs as are asked for."""
        return is_finished(self.folder(key, seed), self.config, self.overrides)

    def write(self) -> None:
        """The configuration of each variant."""
        self.out.mkdir(parents=True, exist_ok=True)
        for key, variant in variants_of(self.config).items():
            text = yaml.safe_dump(with_variant(self.config, variant), sort_keys=False)
            self._file(key).write_text(text, encoding="utf-8")

    def _file(self, key: str) -> Path:
        return self.out / f"{key}.yaml"


def run_all(plans: Sequence[Plan], parallel: int) -> list[str]:
    """Run what is not finished: in this process, or ``parallel`` processes side by side.

    Returns:
        Names of runs that failed (side by side; in this process the error is raised).
    """
    for plan in plans:
        plan.write()
    if parallel == 1:
        for plan in plans:
            _run_here(plan)
        return []
    jobs = []
    for plan in plans:
        missing = [(key, seed) for key, seed in plan.each() if not plan.is_finished(key, seed)]
        if missing:
            prepare(plan, missing[0][0])
        for key, seed in missing:
            command = [sys.executable, "-m", "graphattn.cli", "fit", *plan.arguments(key, seed)]
            command.append("--trainer.enable_progress_bar=false")
            jobs.append(Job(f"{plan.out.name} {key}, seed {seed}", command, plan.out / key / f"seed_{seed}.log"))
    return [job.name for job in run_jobs(jobs, parallel)]


def prepare(plan: Plan, key: str) -> None:
    """Download, decode and process the data once, ahead of all who would do it beside each other."""
    from graphattn.training.lightning_cli import TrainingCLI

    print(f"== {plan.path.stem}: data", flush=True)
    trying = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    TrainingCLI("fit", [*plan.arguments(key, 0), *trying]).datamodule.prepare_data()


def _run_here(plan: Plan) -> None:
    every = list(plan.each())
    for number, (key, seed) in enumerate(every):
        print(f"== {key}, seed {seed} ({number + 1} of {len(every)})", flush=True)
        fit_here(plan.arguments(key, seed))


def read_table(plan: Plan) -> Table:
    """The results of every seed that all variants have finished; of a variant that has none, nothing."""
    found = {key: runs for key, runs in read_runs(plan.each(), plan.folder).items() if runs}
    return shared_seeds(found) if next(iter(variants_of(plan.config))) in found else {}
