"""What a leaderboard run will do, settled before anything starts: every error of a configuration is shown once."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from graphattn.errors import ConfigError
from graphattn.training.config_errors import own_errors
from graphattn.training.leaderboard.options import LeaderboardOptions
from graphattn.training.lightning_cli import TrainingCLI
from graphattn.training.results import Results, read_results
from graphattn.training.run_folder import RunOptions, changed_keys, has_run

__all__ = ["Plan", "make_plan"]

_EXAMPLE = "leaderboard:\n  dataset: ogbg-molhiv\n  method: my method"


@dataclass
class Plan:
    """A configuration and the seeds it is run with.

    Args:
        options: The section ``leaderboard``.
        config: The resolved configuration, the same for all seeds.
        text: The same as YAML.
        folder: ``<root>/<name>``, which holds a folder for each seed and the row.
        seeds: The seeds.
        monitor: Logged name that chooses the best epoch.
        mode: ``"min"`` or ``"max"``.
        slots: For each run at a time the GPUs it sees; an empty tuple: it sees all there is.
        data: The data module.
    """

    options: LeaderboardOptions
    config: dict[str, Any]
    text: str
    folder: Path
    seeds: list[int]
    monitor: str
    mode: str
    slots: list[tuple[str, ...]]
    data: LightningDataModule | None = field(repr=False)

    @property
    def max_epochs(self) -> int | None:
        """Epochs asked for, or ``None`` where only the time or the steps are limited."""
        epochs = self.config["trainer"]["max_epochs"]
        return epochs if epochs is None or epochs > 0 else None

    def run_folder(self, seed: int) -> Path:
        """The folder of one seed's run."""
        return self.folder / f"seed_{seed}"

    def finished(self, seed: int) -> Results | None:
        """The results of a seed that has trained all its epochs."""
        results = read_results(self.run_folder(seed))
        if results is None or (self.max_epochs and results.max_epochs != self.max_epochs):
            return None
        return replace(results, folder=str(self.run_folder(seed)))  # it may have been moved

    def prepare_data(self) -> None:
        """Download and process once, before several runs would do it at once, or fail at it one after another."""
        if self.data is not None:
            self.data.prepare_data()
            self.data = None  # the runs have the memory

    def check_folders(self) -> None:
        """Refuse to mix runs of another configuration into the row.

        Raises:
            ConfigError: If a seed's folder holds one.
        """
        for seed in self.seeds:
            folder = self.run_folder(seed)
            if has_run(folder):
                differing = changed_keys(folder, {**self.config, "seed_everything": seed}, lengths=True)
                if differing:
                    state = "a finished" if read_results(folder) else "an unfinished"
                    raise ConfigError(
                        f"{folder} holds {state} run of another configuration; differing: {', '.join(differing)}. "
                        "Give the new runs another name: --run.name=..."
                    )


def make_plan(fit: Sequence[str], seeds: Sequence[int], parallel: int | None) -> Plan:
    """Parse and build the configuration once.

    Args:
        fit: Arguments of ``graphattn fit``.
        seeds: The seeds; none: as many as the rules ask for.
        parallel: Runs at the same time; ``None``: one for each device.

    Raises:
        ConfigError: If the configuration is wrong or has no section ``leaderboard``.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each run shows its own
        cli = _ConfigOnly("fit", fit)
    config, options = cli.config_dict(), cli.config_init.leaderboard
    if options is None:
        raise ConfigError(f"the configuration has no section leaderboard. It needs at least:\n{_EXAMPLE}")
    options.check()
    _check_name(options.dataset, config["data"])
    if config["trainer"]["fast_dev_run"]:
        raise ConfigError("trainer.fast_dev_run gives no results; to try a configuration out use --check")
    if config["run"]["folder"]:
        raise ConfigError("run.folder is one folder, and each seed needs its own; use --run.root and --run.name")
    return Plan(
        options=options,
        config=config,
        text=cli.config_text(),
        folder=Path(config["run"]["root"]) / config["run"]["name"],
        seeds=list(seeds) or list(range(options.needed_seeds)),
        monitor=getattr(cli.model, "monitor", "val/loss"),
        mode=getattr(cli.model, "mode", "min"),
        slots=_slots(config["trainer"], parallel),
        data=cli.datamodule,
    )


def _check_name(dataset: str, data: dict[str, Any]) -> None:
    """Refuse a row that names another data set than the runs train on (``data.name`` overridden, say)."""
    name = (data.get("init_args") or data).get("name")
    if isinstance(name, str) and _folded(name) != _folded(dataset):
        raise ConfigError(
            f"configuration: leaderboard.dataset is {dataset!r}, but data.name is {name!r}: the row, its published "
            "entries and its rules would be those of another data set"
        )


def _folded(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("ogb-lsc-").removeprefix("ogblsc-")


class _ConfigOnly(TrainingCLI):
    """Parse the configuration and build the model, in no folder and without a trainer."""

    def before_instantiate_classes(self) -> None:
        """Name the run as ``graphattn fit`` would; each run is resumed where there is something."""
        run = RunOptions(**self.config.run.as_dict())
        files = [Path(file.relative) for file in (self.config.config or []) if file is not None]
        self.config.run.name = run.name or (files[0].stem if files else "run")
        self.config.run.if_exists = "resume"

    def instantiate_classes(self) -> None:
        """Model and data: what their arguments get wrong is told once and not by every run."""
        with own_errors():
            self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")


def _slots(trainer: dict[str, Any], parallel: int | None) -> list[tuple[str, ...]]:
    devices = trainer["devices"]
    chosen = isinstance(devices, list) or (isinstance(devices, str) and "," in devices)
    if trainer["accelerator"] not in ("auto", "gpu", "cuda") or not torch.cuda.is_available() or chosen:
        return [()] * (parallel or 1)
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = listed.split(",") if listed else [str(number) for number in range(torch.cuda.device_count())]
    each = int(devices) if str(devices).isdecimal() else 1
    groups = [tuple(visible[start : start + each]) for start in range(0, len(visible) - each + 1, each)]
    if not groups:
        raise ConfigError(f"trainer.devices asks for {each} GPUs for each run, and {len(visible)} can be seen")
    return [groups[number % len(groups)] for number in range(parallel or len(groups))]
