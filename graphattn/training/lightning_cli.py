"""Lightning's CLI with a run folder around it: configuration in; model, data and trainer out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from graphattn.errors import ConfigError
from graphattn.training.callbacks import EpochSeed, History, RunCheckpoint, StopOnNaN
from graphattn.training.checkpoint import AtomicCheckpointIO
from graphattn.training.config_errors import explain, own_errors
from graphattn.training.leaderboard.options import LeaderboardOptions
from graphattn.training.progress import progress_bar
from graphattn.training.results import Results, read_results
from graphattn.training.run_folder import (
    RunOptions,
    changed_keys,
    choose_folder,
    config_folder,
    find_checkpoint,
    has_run,
)

__all__ = ["SUBCOMMANDS", "FinishedRun", "TrainingCLI"]

SUBCOMMANDS = {
    "fit": "Train a model, then test its last and its best checkpoint.",
    "validate": "Score a checkpoint on the validation split.",
    "test": "Score a checkpoint on the test split.",
    "predict": "Write a checkpoint's raw outputs on the test split to predictions.npz. With --images FOLDER "
    "(and --out FOLDER, --on_error stop or skip, --max_side N): pictures of a segmentation of each photograph instead.",
}


class FinishedRun(Exception):
    """The run asked for is finished already; carries its results."""

    def __init__(self, results: Results) -> None:
        super().__init__(results.folder)
        self.results = results


class TrainingCLI(LightningCLI):
    """Parse a configuration and build model, data and trainer in a run folder; nothing runs yet.

    Args:
        subcommand: One of ``fit``, ``validate``, ``test``, ``predict``.
        argv: Its arguments: ``--config x.yaml --trainer.max_epochs=5``.
    """

    folder: Path
    is_new: bool  # whether the folder held no run when it was chosen
    checkpoint: Path | None
    history: History

    def __init__(self, subcommand: str, argv: Sequence[str]) -> None:
        self.command = subcommand
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,  # tasks take their optimizer as an argument
            parser_kwargs={
                "prog": f"graphattn {subcommand}",
                "description": SUBCOMMANDS[subcommand],
                "exit_on_error": False,
                "allow_abbrev": False,
            },
            args=list(argv),
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, the checkpoint, and the section that ``graphattn leaderboard`` reads."""
        parser.add_class_arguments(RunOptions, "run")
        parser.add_argument(
            "--leaderboard",
            type=LeaderboardOptions | None,
            default=None,
            help="what a leaderboard row says beside the figures; read by graphattn leaderboard only",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="last, best, auto (last if there is one) or a file; fit resumes from it, the others score it "
            "(default: best)",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; one clear error for what the configuration gets wrong."""
        try:
            self.config = parser.parse_args(args)
        except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
            raise ConfigError(explain(error, parser.get_defaults().keys())) from error
        seed = self.config.seed_everything
        if seed is False or not 0 <= seed < 2**32:
            limits = f"a whole number from 0 to {2**32 - 1}"
            raise ConfigError(f"configuration: seed_everything must be {limits}, got {seed}")

    def before_instantiate_classes(self) -> None:
        """Choose the run folder and the checkpoint before anything slow happens."""
        config = self.config
        options = RunOptions(**config.run.as_dict())
        files = [Path(file.relative) for file in (config.config or []) if file is not None]
        options.name = options.name or (files[0].stem if files else "run")
        if self.command == "fit":
            self._plan_fit(options, files)
        else:
            self.folder = config_folder(files) or options.planned(config.seed_everything)
            self.checkpoint = find_checkpoint(self.folder, config.ckpt_path or "best")
        config.run.name = options.name  # the file's own name says nothing once it is copied to the run folder

    def _plan_fit(self, options: RunOptions, files: list[Path]) -> None:
        config = self.config
        if options.if_exists == "resume" and config.ckpt_path is None:
            config.ckpt_path = "auto"
        if config.ckpt_path in ("last", "best", "auto"):
            # A config file from a run folder resumes that folder, wherever it was moved to.
            self.folder = config_folder(files) or options.planned(config.seed_everything)
        elif rank_zero_only.rank != 0 or config.trainer.fast_dev_run:  # another process has chosen; nothing is written
            self.folder = options.planned(config.seed_everything)
        else:  # from nothing, or from a file of whatever origin: a new run
            self.folder = choose_folder(options, config.seed_everything)
        if config.trainer.fast_dev_run:
            self.checkpoint = None
            return
        if config.ckpt_path in ("last", "best", "auto"):
            self._check_resumption(config)
        self.checkpoint = find_checkpoint(self.folder, config.ckpt_path)
        self.is_new = not has_run(self.folder)
        config.ckpt_path = None  # of this session alone: the config that is kept scores the best one unless told

    @rank_zero_only
    def _note(self, text: str) -> None:
        print(f"note: {text}", flush=True)

    def _check_resumption(self, config: Any) -> None:
        differing = changed_keys(self.folder, self.config_dict())
        results = read_results(self.folder)
        planned = config.trainer.max_epochs or 1000  # Lightning's default
        if results is not None and results.max_epochs >= planned:
            if differing:
                raise ConfigError(
                    f"{self.folder} holds a finished run of another configuration; differing: {', '.join(differing)}. "
                    "Start beside it with --run.if_exists=version, or give this run another --run.name."
                )
            raise FinishedRun(results)
        if differing:
            self._note(f"resuming {self.folder} with changes in {', '.join(differing)}")

    def config_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain values."""
        return yaml.safe_load(self.config_text())

    def config_text(self) -> str:
        """The resolved configuration as YAML."""
        # Positional, because jsonargparse 4.49 renamed the flag: entries that are null are written too.
        return self.parser.dump(self.config, "yaml", False)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer."""
        with own_errors():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with the run folder's logger, callbacks and checkpoint files."""
        given = self.config_init.trainer
        callbacks = _as_list(given.callbacks)
        ours: list[Callback] = [EpochSeed(self.config.seed_everything), StopOnNaN()]
        self.history = History(self.folder)
        if (
            not any(isinstance(callback, ProgressBar) for callback in callbacks)
            and given.enable_progress_bar is not False
        ):
            ours.append(progress_bar())
        if not given.fast_dev_run and self.command == "fit":
            ours.append(self.history)
            if given.enable_checkpointing is not False:
                ours += self._checkpoints()
            if given.logger is None:
                kwargs["logger"] = TensorBoardLogger(self.folder, name="tensorboard", version="")
        else:
            kwargs["logger"] = False if given.logger is None else given.logger
            if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
                kwargs["enable_checkpointing"] = False
        if given.enable_model_summary is None:
            kwargs["enable_model_summary"] = False
        kwargs["plugins"] = [*_as_list(given.plugins), AtomicCheckpointIO()]
        kwargs["default_root_dir"] = given.default_root_dir or str(self.folder)
        return super().instantiate_trainer(callbacks=[*callbacks, *ours], **kwargs)

    def _checkpoints(self) -> list[Callback]:
        shared: dict[str, Any] = {
            "dirpath": self.folder / "checkpoints",
            "enable_version_counter": False,
            "save_on_train_epoch_end": True,
        }
        monitor = getattr(self.model, "monitor", "val/loss")
        mode = getattr(self.model, "mode", "min")
        # The best one first: the last one, from which runs resume, then knows of it.
        best = RunCheckpoint(filename="best", monitor=monitor, mode=mode, **shared)
        return [best, RunCheckpoint(filename="last", **shared)]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
