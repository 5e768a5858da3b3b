"""Pictures of a comparison: photograph, truth and what each variant says, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.connnet.runs import Plan
from experiments.connnet.variants import VARIANTS
from experiments.images import evenly
from experiments.runs import heading
from graphattn.training.checkpoint import load_checkpoint
from graphattn.training.lightning_cli import TrainingCLI
from graphattn.training.segmentation_pictures import connectivity_picture, instance_picture

__all__ = ["draw"]

SHOWN = 6  # photographs
_QUIET = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=auto", "--trainer.precision=32-true")


def draw(plan: Plan, quick: bool, seed: int = 0) -> list[Path]:
    """``examples.png`` (masks, or instances in colours), ``saliency.png`` and ``connectivity.png``, of the last
    checkpoints of a seed, for test photographs at even distances in the set."""
    data: Any = None
    columns: dict[str, list[Any]] = {}
    for name in VARIANTS:
        task, datamodule = _trained(plan.folder(name, seed))
        if data is None:
            datamodule.setup()
            data = datamodule.splits.test
        chosen = evenly(len(data), SHOWN).tolist()
        columns[name] = [_look(task, data, n) for n in chosen]
    several = data.labels == "instances"
    photos = [data.images[n].permute(1, 2, 0).numpy() for n in chosen]
    truths = [_labels(data.masks[n], several) for n in chosen]
    shared = {"photograph": photos, "truth": truths}
    said = {
        name: [_labels(r.instances if several else r.mask, several) for r in found] for name, found in columns.items()
    }
    votes = {name: [(r.saliency * 255).round().byte().numpy() for r in found] for name, found in columns.items()}
    edges = {name: [connectivity_picture(r.edges, task.neighbours) for r in found] for name, found in columns.items()}
    where = heading(plan.path.stem, quick)
    return [
        _draw({**shared, **said}, plan.out / "examples.png", f"{where}: {'instances' if several else 'masks'}"),
        _draw({**shared, **votes}, plan.out / "saliency.png", f"{where}: saliency"),
        _draw({**shared, **edges}, plan.out / "connectivity.png", f"{where}: neighbours that a pixel is connected to"),
    ]


def _trained(folder: Path) -> tuple[Any, Any]:
    """The task of a run's last checkpoint, in evaluation mode, and its data module."""
    cli = TrainingCLI("test", ["--config", str(folder / "config.yaml"), "--ckpt_path", "last", *_QUIET])
    task: Any = cli.model
    task.load_state_dict(load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"])
    return task.eval().to(cli.trainer.strategy.root_device), cli.datamodule


@torch.no_grad()
def _look(task: Any, data: Any, number: int) -> Any:
    reading = task.read(task.model(data[number]["x"][None].to(task.device)).float())
    return type(reading)(*(field[0].cpu() for field in reading))


def _labels(labels: Tensor, several: bool) -> np.ndarray:
    return instance_picture(labels) if several else (labels > 0).numpy().astype(np.uint8) * 255


def _draw(columns: dict[str, list[np.ndarray]], path: Path, title: str) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = next(iter(columns.values()))
    rows, shape = len(first), np.mean([picture.shape[0] / picture.shape[1] for picture in first])
    figure = Figure(figsize=(2.1 * len(columns), 2.1 * shape * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            axes = places[row, column]
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
        places[0, column].set_title(name.replace(", ", ",\n").replace(" + ", "\n+ "), fontsize="small")
    figure.suptitle(f"{title}; test photographs, seed 0, last epoch", fontsize="small")
    figure.savefig(path, dpi=130)
    return path
