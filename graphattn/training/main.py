"""What ``graphattn fit | validate | test | predict`` do."""

from __future__ import annotations

import json
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed, nn

from graphattn._files import write_atomically
from graphattn.errors import ConfigError
from graphattn.training.checkpoint import load_checkpoint
from graphattn.training.lightning_cli import FinishedRun, TrainingCLI
from graphattn.training.lock import only_writer
from graphattn.training.results import Figures, Results
from graphattn.training.run_folder import has_run
from graphattn.training.versions import device_name, versions

__all__ = ["run"]

_QUIET = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)


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
        except FinishedRun as finished:
            results = finished.results
            _say(f"{results.folder} is finished already; its results:\n\n{results.to_markdown()}")
            return results
        with _own_process_group():
            return _fit(cli) if subcommand == "fit" else _score_checkpoint(cli)


@contextmanager
def _own_process_group() -> Iterator[None]:
    """Close the process group that a run of several processes opens, if the run ends well.

    Lightning closes NCCL's alone. A Gloo group that is open when Python ends can abort the process, whose run is then
    called failed though its results are written (pytorch/pytorch#190489). After an error it stays open: closing waits
    for the other processes, and the error is what the user must see.
    """
    before = distributed.is_available() and distributed.is_initialized()
    yield
    if not before and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _score_checkpoint(cli: TrainingCLI) -> list[dict[str, float]] | None:
    shared: dict[str, Any] = {"datamodule": cli.datamodule, "ckpt_path": str(cli.checkpoint)}
    if cli.command == "predict":
        if cli.trainer.world_size > 1:
            raise ConfigError("predict writes one file in the order of the split; use --trainer.devices=1")
        _write_predictions(cli.trainer.predict(cli.model, **shared) or [], cli.folder / "predictions.npz")
        return None
    figures = getattr(cli.trainer, cli.command)(cli.model, verbose=False, **shared)
    _say(f"{cli.checkpoint}\n" + "\n".join(f"  {name:40s} {value:.4f}" for name, value in sorted(figures[0].items())))
    return figures


def _fit(cli: TrainingCLI) -> Results | None:
    trainer, model = cli.trainer, cli.model
    network: Any = getattr(model, "model", model)  # a user's own LightningModule may be the network itself
    parameters = _count_parameters(model)
    counted = "parameters not yet known" if parameters is None else f"{parameters:,} parameters"
    where = f"on {device_name(trainer.strategy.root_device)}; run folder {cli.folder}"
    _say(f"{type(network).__name__}, {counted}, {where}")
    if cli.checkpoint:
        _say(f"resuming from {cli.checkpoint}")
    if trainer.fast_dev_run or not trainer.is_global_zero:  # nothing is written
        return _fit_and_test(cli)
    with only_writer(cli.folder):
        if cli.is_new and has_run(cli.folder):
            raise ConfigError(f"another process has run in {cli.folder} meanwhile; choose another --run.name")
        trainer.callbacks.append(_Description(cli.folder, cli.config_text()))  # type: ignore[attr-defined]
        return _fit_and_test(cli)


class _Description(callbacks.Callback):
    """Says in the folder what the run is, once a checkpoint has been taken: one that does not fit changes nothing."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder, self.config = folder, config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration and the versions."""
        if trainer.is_global_zero:
            found = versions(trainer.strategy.root_device)
            _write_text(self.folder / "config.yaml", self.config)
            _write_text(self.folder / "versions.json", json.dumps(found, indent=2) + "\n")


def _fit_and_test(cli: TrainingCLI) -> Results | None:
    trainer, model = cli.trainer, cli.model
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
    # With several processes the first one has chosen the folder, and the others may have guessed another.
    cli.folder = Path(trainer.strategy.broadcast(str(cli.folder)))
    results = _final_results(cli)
    if trainer.is_global_zero:
        _write_text(cli.folder / "results.json", results.to_json())
        _write_text(cli.folder / "results.md", results.to_markdown())
    _say(f"\n{results.to_markdown()}\nrun folder: {cli.folder}")
    return results


def _count_parameters(module: nn.Module) -> int | None:
    """All of them, embeddings and frozen ones included; ``None`` while some have no shape yet."""
    parameters = list(module.parameters())
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in parameters):
        return None
    return sum(parameter.numel() for parameter in parameters)


def _final_results(cli: TrainingCLI) -> Results:
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
        # A checkpoint's weights are the averages; in the process that trained, the callback would load the others.
        averaging = getattr(callbacks, "WeightAveraging", ())
        trainer.callbacks = [part for part in trainer.callbacks if not isinstance(part, averaging)]  # type: ignore[attr-defined]
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
        parameters=_count_parameters(model) or 0,
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
    if len({output.shape[1:] for output in outputs}) > 1:
        raise ConfigError("the outputs are of several sizes and fit into no one array; of photographs use --images")
    values = torch.cat(outputs).numpy() if outputs else np.zeros((0,))
    write_atomically(path, lambda file: np.savez(file, prediction=values))
    _say(f"{path}: prediction {tuple(values.shape)}")


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)
