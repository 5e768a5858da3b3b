"""Networks, data and training from a configuration of the dense teacher, without the command line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from experiments.build import factory, make
from experiments.sparsifiner.variants import Budget, Variant
from graphattn.models.image import PrunedVisionTransformer, VisionTransformer
from graphattn.training.data.images import ImageDataModule
from graphattn.training.tasks.images import ImageClassification
from graphattn.training.tasks.sparsification import Sparsification

__all__ = ["accuracy", "data_of", "distill", "fit_teacher", "load_config", "network_of", "reconstruct_only"]


def load_config(path: Path, quick: bool) -> dict[str, Any]:
    """A configuration; ``quick``: of a few steps and a small network."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if quick:
        config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2}
        config["data"]["init_args"]["batch_size"] = 16
        config["model"]["init_args"]["model"]["init_args"] |= {"embed_dim": 24, "depth": 2, "num_heads": 3}
    return config


def network_of(config: dict[str, Any], variant: Variant | None = None) -> VisionTransformer:
    """The teacher's network, or a variant of it."""
    arguments = dict(config["model"]["init_args"]["model"]["init_args"])
    if variant is None or variant.kind == "dense":
        return VisionTransformer(**arguments)
    if variant.token_keep is not None:
        return PrunedVisionTransformer(**arguments, token_keep=variant.token_keep)
    return VisionTransformer(**arguments, attention="sparsifiner", attention_options=variant.options)


def data_of(config: dict[str, Any], seed: int) -> ImageDataModule:
    """The images, in an order of their own for each seed, on the device where training is."""
    return ImageDataModule(**{**config["data"]["init_args"], "seed": seed, "on_device": True})


def fit_teacher(config: dict[str, Any], data: ImageDataModule, seed: int) -> nn.Module:
    """The dense network, trained as the configuration says."""
    seed_everything(seed, verbose=False)
    task = config["model"]["init_args"]
    shared = {name: factory(task[name]) for name in ("optimizer", "lr_scheduler")} | _augmentation(task)
    smoothing = task.get("label_smoothing", 0.0)
    module = ImageClassification(network_of(config), label_smoothing=smoothing, capture=True, **shared)
    _fit(config, module, data, config["trainer"]["max_epochs"])
    return module.model


def reconstruct_only(
    config: dict[str, Any], data: ImageDataModule, budget: Budget, teacher: nn.Module, network: nn.Module, seed: int
) -> None:
    """Stage 1, in place: the network takes the teacher's weights, and its predictors learn."""
    seed_everything(seed, verbose=False)
    _fit(
        config,
        Sparsification(
            network,
            teacher,
            reconstruction_epochs=budget.reconstruction_epochs,
            predictor_lr=budget.predictor_lr,
            capture=True,
            optimizer=factory(config["model"]["init_args"]["optimizer"]),
            **_augmentation(config["model"]["init_args"]),
        ),
        data,
        budget.reconstruction_epochs,
    )


def distill(
    config: dict[str, Any], data: ImageDataModule, budget: Budget, teacher: nn.Module, network: nn.Module, seed: int
) -> None:
    """Stage 2, in place, from the weights that the network has."""
    seed_everything(seed, verbose=False)
    given = config["model"]["init_args"]
    optimizer = {**given["optimizer"], "init_args": {**given["optimizer"]["init_args"], "lr": budget.lr}}
    _fit(
        config,
        Sparsification(
            network,
            teacher,
            start_from_teacher=False,
            reconstruction_epochs=0,
            capture=True,
            optimizer=factory(optimizer),
            label_smoothing=given.get("label_smoothing", 0.0),
            **_augmentation(given),
        ),
        data,
        budget.distillation_epochs,
    )


@torch.no_grad()
def accuracy(network: nn.Module, images: Any) -> float:
    """Per cent of a set of images that is on the network's device, in float32."""
    network.eval()
    hits: Tensor | int = 0
    for begin in range(0, len(images), 1000):
        batch = images[slice(begin, begin + 1000)]
        hits = hits + (network(batch["x"]).argmax(-1) == batch["y"]).sum()
    return 100.0 * float(hits) / len(images)


def _augmentation(task: dict[str, Any]) -> dict[str, Any]:
    return {"train_transform": make(task["train_transform"])} if "train_transform" in task else {}


def _fit(config: dict[str, Any], task: LightningModule, data: ImageDataModule, epochs: int) -> None:
    given = config["trainer"]
    cuda = torch.cuda.is_available() and given.get("accelerator") != "cpu"
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cuda" if cuda else "cpu",
        devices=1,
        precision=given.get("precision", "32-true") if cuda else "32-true",
        gradient_clip_val=given.get("gradient_clip_val"),
        limit_train_batches=given.get("limit_train_batches", 1.0),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[_Lines()],
    )
    trainer.fit(task, datamodule=data)


class _Lines(Callback):
    """One line for each epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = {name: f"{float(value):.4g}" for name, value in trainer.callback_metrics.items()}
        seconds = time.monotonic() - self._begin
        print(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {figures}, {seconds:.1f} s", flush=True)
