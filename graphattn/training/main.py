"""``graphattn fit | validate | test | predict``: Lightning's CLI with a run folder around it."""

from __future__ import annotations

import json
import logging
import signal
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from graphattn.errors import ConfigError
from graphattn.training.callbacks import EpochSeed, History, RunCheckpoint, StopOnNaN
from graphattn.training.checkpoint import AtomicCheckpointIO, load_checkpoint, write_atomically
from graphattn.training.config_errors import explain
from graphattn.training.progress import progress_bar
from graphattn.training.results import Figures, Results, read_results
from graphattn.training.run_folder import RunOptions, changed_keys, choose_folder, config_folder, find_checkpoint
from graphattn.training.versions import device_name, versions

__all__ = ["SUBCOMMANDS", "TrainingCLI", "run"]

SUBCOMMANDS = {
    "fit": "Train a model, then test its last and its best checkpoint.",
    "validate": "Score a checkpoint on the validation split.",
    "test": "Score a checkpoint on the test split.",
    "predict": "Write a checkpoint's raw outputs on the test split to predictions.npz.",
}

_QUIET = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


class _Finished(Exception):
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
        """Add the run folder and the checkpoint."""
        parser.add_class_arguments(RunOptions, "run")
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

    def before_instantiate_classes(self) -> None:
        """Choose the run folder and the checkpoint before anything slow happens."""
        config = self.config
        options = RunOptions(**config.run.as_dict())
        files = [Path(file.relative) for file in (config.config or []) if file is not None]
        options.name = options.name or (files[0].stem if files else "run")
        if config.ckpt_path == "auto":
            options.if_exists = "resume"
        if self.command == "fit":
            if options.if_exists == "resume" and config.ckpt_path is None:
                config.ckpt_path = "auto"
            first = rank_zero_only.rank == 0 and not config.trainer.fast_dev_run
            resuming = config.ckpt_path is not None or not first
            # A config file from a run folder resumes that folder, wherever it was moved to.
            home = config_folder(files) if config.ckpt_path in ("last", "best", "auto") else None
            self.folder = home or choose_folder(options, config.seed_everything, resuming=resuming)
            if first and resuming:
                self._check_resumption(config)
            self.checkpoint = None if config.trainer.fast_dev_run else find_checkpoint(self.folder, config.ckpt_path)
        else:
            self.folder = config_folder(files) or choose_folder(options, config.seed_everything, resuming=True)
            self.checkpoint = find_checkpoint(self.folder, config.ckpt_path or "best")
        config.run.name = options.name  # the file's own name says nothing once it is copied to the run folder

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
            raise _Finished(results)
        if differing:
            print(f"note: resuming {self.folder} with changes in {', '.join(differing)}", flush=True)

    def config_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain values."""
        import yaml

        return yaml.safe_load(self.config_text())

    def config_text(self) -> str:
        """The resolved configuration as YAML."""
        # Positional, because jsonargparse 4.49 renamed the flag: entries that are null are written too.
        return self.parser.dump(self.config, "yaml", False)

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


def run(subcommand: str, argv: Sequence[str]) -> Results | list[dict[str, float]] | None:
    """Run one subcommand.

    Args:
        subcommand: One of ``fit``, ``validate``, ``test``, ``predict``.
        argv: Its arguments.

    Returns:
        ``fit``: the :class:`~graphattn.training.results.Results` (``None`` for a ``fast_dev_run``); ``validate`` and
        ``test``: the logged figures; ``predict``: ``None``, the file ``predictions.npz`` is written.

    Raises:
        ConfigError: If the configuration does not fit together.
        CheckpointError: If a checkpoint is missing or cannot be read.
        TrainingError: If the loss is not a number.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _QUIET:
            warnings.filterwarnings("ignore", message)
        try:
            cli = TrainingCLI(subcommand, argv)
        except _Finished as finished:
            results = finished.results
            _say(f"{results.folder} is finished already; its results:\n\n{results.to_markdown()}")
            return results
        return _fit(cli) if subcommand == "fit" else _score_checkpoint(cli)


def _score_checkpoint(cli: TrainingCLI) -> list[dict[str, float]] | None:
    shared: dict[str, Any] = {"datamodule": cli.datamodule, "ckpt_path": str(cli.checkpoint)}
    if cli.command == "predict":
        _write_predictions(cli.trainer.predict(cli.model, **shared) or [], cli.folder / "predictions.npz")
        return None
    figures = getattr(cli.trainer, cli.command)(cli.model, verbose=False, **shared)
    _say(f"{cli.checkpoint}\n" + "\n".join(f"  {name:40s} {value:.4f}" for name, value in sorted(figures[0].items())))
    return figures


def _fit(cli: TrainingCLI) -> Results | None:
    trainer, model = cli.trainer, cli.model
    network: Any = getattr(model, "model", model)  # a user's own LightningModule may be the network itself
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    where = f"on {device_name(trainer.strategy.root_device)}; run folder {cli.folder}"
    _say(f"{type(network).__name__}, {parameters:,} parameters, {where}")
    if cli.checkpoint:
        _say(f"resuming from {cli.checkpoint}")
    if not trainer.fast_dev_run and trainer.is_global_zero:
        _write_text(cli.folder / "config.yaml", cli.config_text())
        _write_text(cli.folder / "versions.json", json.dumps(versions(trainer.strategy.root_device), indent=2) + "\n")
    try:
        trainer.fit(model, datamodule=cli.datamodule, ckpt_path=str(cli.checkpoint) if cli.checkpoint else None)
    except SystemExit:  # Lightning's answer to Ctrl-C
        if not trainer.interrupted:
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
        raise KeyboardInterrupt(_how_to_resume(cli)) from None
    if trainer.fast_dev_run:
        return None
    results = _final_results(cli, parameters)
    if trainer.is_global_zero:
        _write_text(cli.folder / "results.json", results.to_json())
        _write_text(cli.folder / "results.md", results.to_markdown())
    _say(f"\n{results.to_markdown()}\nrun folder: {cli.folder}")
    return results


def _final_results(cli: TrainingCLI, parameters: int) -> Results:
    """Test the last model, which is in memory, and then the best one."""
    rows = list(cli.history.rows)
    seconds = cli.history.seconds
    trainer, model = cli.trainer, cli.model
    epochs = len(rows)
    precision = str(trainer.precision)
    tests = [trainer.test(model, datamodule=cli.datamodule, verbose=False)[0]]
    best_path = cli.folder / "checkpoints" / "best.ckpt"
    best_epoch = epochs
    if best_path.is_file() and trainer.checkpoint_callbacks:
        best_epoch = load_checkpoint(best_path)["epoch"] + 1
        tests.append(trainer.test(model, datamodule=cli.datamodule, ckpt_path=str(best_path), verbose=False)[0])
    rows = rows or [{}]
    last, best = (
        Figures(epoch, _stage(row, "train"), _stage(row, "val"), _stage(test, "test"))
        for epoch, row, test in ((epochs, rows[-1], tests[0]), (best_epoch, rows[best_epoch - 1], tests[-1]))
    )
    return Results(
        name=cli.config.run.name,
        seed=cli.config.seed_everything,
        metric=getattr(model, "metric", "loss"),
        last=last,
        best=best,
        epochs=epochs,
        max_epochs=trainer.max_epochs or epochs,
        seconds=seconds,
        parameters=parameters,
        device=device_name(trainer.strategy.root_device),
        precision=precision,
        folder=str(cli.folder),
    )


def _stage(figures: Any, stage: str) -> dict[str, float]:
    return {k.partition("/")[2]: float(v) for k, v in figures.items() if k.startswith(f"{stage}/")}


def _how_to_resume(cli: TrainingCLI) -> str:
    if not (cli.folder / "checkpoints" / "last.ckpt").is_file():
        return "interrupted before the first checkpoint"
    return f"interrupted; go on with: graphattn fit --config {cli.folder / 'config.yaml'} --ckpt_path last"


def _write_predictions(outputs: list[Any], path: Path) -> None:
    values = torch.cat(outputs).numpy() if outputs else np.zeros((0,))
    write_atomically(path, lambda file: np.savez(file, prediction=values))
    _say(f"{path}: prediction {tuple(values.shape)}")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
