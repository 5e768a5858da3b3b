"""Networks, data and training from a configuration, without the command line's parser."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from experiments.build import class_of, factory, make

__all__ = ["CONFIGS", "ForkCheckpoint", "data_of", "load_config", "task_of", "trainer_of"]

CONFIGS = Path(__file__).resolve().parent
_MODEL_SIZE = {
    "EGT": {"width": 16, "heads": 4, "layers": 2},
    "VisionTransformer": {"embed_dim": 16, "depth": 2, "num_heads": 2},
    "CausalTransformer": {"width": 16, "heads": 2, "layers": 2},
}


class ForkCheckpoint(ModelCheckpoint):
    """A checkpoint, ``fork.ckpt``, after one epoch of a training, from which another one goes on.

    Args:
        folder: Where it goes.
        epochs: After so many.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        super().__init__(folder, "fork", monitor=None, save_on_train_epoch_end=True)
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save it, or wait."""
        if trainer.current_epoch + 1 == self.epochs:
            super().on_train_epoch_end(trainer, pl_module)


def load_config(task: str, *, quick: bool = False, epochs: int | None = None) -> dict[str, Any]:
    """The configuration of a task.

    Args:
        task: Name of a file of this folder, or ``"images"``: CIFAR-10 where ``GRAPHATTN_DATA`` has it, else digits.
        quick: A small network, two epochs of few batches, on few data.
        epochs: Instead of the configuration's.
    """
    from graphattn_datasets.paths import data_folder

    shared = data_folder()
    if task == "images":
        task = "cifar10" if shared is not None and (shared / "cifar10_jpeg").is_dir() else "digits"
    config = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text(encoding="utf-8"))
    data, network = config["data"]["init_args"], config["model"]["init_args"]["model"]
    if task == "text" and (shared is None or not (shared / "tinyshakespeare").is_dir()):
        data["name"] = "python_docs"
    if quick:
        network["init_args"] |= _MODEL_SIZE[network["class_path"].rpartition(".")[2]]
        config["trainer"] |= {"max_epochs": 2, "limit_train_batches": 3, "limit_test_batches": 2}
        data["batch_size"] = 8
        data["eval_batch_size"] = 8
        if "num_graphs" in data.get("options", {}):
            data["options"]["num_graphs"] = [24, 8, 16]
        if task == "text":
            data |= {"context": 64, "stride": 64, "options": {"num_characters": 20_000}}
    if epochs is not None:
        config["trainer"]["max_epochs"] = epochs
    return config


def task_of(config: dict[str, Any]) -> Any:
    """The task with its network, optimizer and schedule."""
    given = dict(config["model"]["init_args"])
    for name in ("optimizer", "lr_scheduler"):
        given[name] = factory(given[name])
    return class_of(config["model"])(**{key: make(value) for key, value in given.items()})


def data_of(config: dict[str, Any], seed: int) -> Any:
    """The data, in an order of their own for each seed."""
    data = dict(config["data"]["init_args"]) | {"seed": seed}
    return class_of(config["data"])(**{key: make(value) for key, value in data.items()})


def trainer_of(config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
    """A trainer that writes nothing but what callbacks do, and does not validate."""
    from graphattn.training.checkpoint import AtomicCheckpointIO

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (".*callbacks used to create the checkpoint.*", ".*LeafSpec.*", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", text)
    given = dict(config["trainer"])
    if not torch.cuda.is_available():
        given |= {"precision": "32-true", "accelerator": "cpu"}
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        **given,
        **quiet,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(callback, ForkCheckpoint) for callback in callbacks),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )
