"""What trained vision transformers read: cosines to Perron vectors, deletion curves, pictures of relevance."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.images import evenly
from experiments.runs import heading
from graphattn.insight import (
    DeletionCurve,
    deletion_curve,
    perron_cosines,
    plot_deletion,
    plot_relevance,
    record,
    token_relevance,
)
from graphattn.training.checkpoint import load_checkpoint
from graphattn.training.lightning_cli import TrainingCLI
from graphattn.training.results import Results

__all__ = ["look"]

IMAGES = 360  # of the test set
HOW = "pagerank"
STEPS = 16
SHOWN = 6
_QUIET = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.precision=32-true")


class Looked(NamedTuple):
    """What one trained network reads: cosines by layer, deletion curves by name, and its relevance."""

    cosines: list[tuple[float, float]]
    curves: dict[str, DeletionCurve]
    pixels: Tensor
    relevance: Tensor


def look(table: dict[str, list[Results]], folder: Path, quick: bool) -> str:
    """Look at the last checkpoint of every run; the text that belongs below the table.

    Args:
        table: Runs by variant.
        folder: Where ``deletion.png`` and ``relevance.png`` go.
        quick: The runs were quick ones, and the pictures say so.
    """
    found = {key: [look_at(Path(result.folder)) for result in results] for key, results in table.items()}
    _draw({key: seeds[0] for key, seeds in found.items()}, folder, quick)
    depth = max(len(seeds[0].cosines) for seeds in found.values())
    lines = [
        "## Cosines of the Linear-InfSA score to the Perron vectors",
        "",
        f"Left / right vector of the rectified scores of each layer, mean over heads, {IMAGES} test images and seeds. "
        "In a network with another attention, the score is what Linear-InfSA would have made of its queries and keys.",
        "",
        f"| attention | {' | '.join(f'layer {n + 1}' for n in range(depth))} |",
        "|---|" + "---:|" * depth,
    ]
    for key, seeds in found.items():
        pairs = [[fmean(seed.cosines[n][side] for seed in seeds) for side in (0, 1)] for n in range(depth)]
        lines.append(f"| {key} | {' | '.join(f'{left:.3f} / {right:.3f}' for left, right in pairs)} |")
    lines += [
        "",
        "## Deletion of patches",
        "",
        f"Area over the curve of the accuracy on {IMAGES} test images, mean over seeds. Relevance: {HOW} of the "
        f"attention, mean over heads and layers; {STEPS} steps; deleted patches become the mean of the data set.",
        "",
        "| attention | most relevant first (high is good) | least relevant first (low is good) | random order |",
        "|---|---:|---:|---:|",
    ]
    for key, seeds in found.items():
        areas = [fmean(seed.curves[name].area_over for seed in seeds) for name in ("morf", "lerf", "random")]
        lines.append(f"| {key} | {' | '.join(f'{area:.3f}' for area in areas)} |")
    return "\n".join(lines) + "\n"


def look_at(folder: Path) -> Looked:
    """What the network of a run's last checkpoint reads in images of the test set."""
    model, test = trained(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, test = model.to(device), test.to(device)
    batch = test[evenly(len(test), IMAGES)]
    images, labels = batch["x"], batch["y"]
    with torch.no_grad(), record(model) as layers:
        model(images)
    cosines = [perron_cosines(entry) for entry in layers]
    relevance = token_relevance(layers, HOW)[..., model.num_prefix_tokens :].unflatten(-1, model.patch_embed.grid_size)
    noise = torch.rand(relevance.shape, generator=torch.Generator().manual_seed(0)).to(device)
    curves = {
        "morf": deletion_curve(model, images, labels, relevance, order="morf", steps=STEPS),
        "lerf": deletion_curve(model, images, labels, relevance, order="lerf", steps=STEPS),
        "random": deletion_curve(model, images, labels, noise, steps=STEPS),
    }
    means = [(float(pair.left.mean()), float(pair.right.mean())) for pair in cosines]
    shown = evenly(len(labels), SHOWN)
    return Looked(means, curves, test.pixels(images[shown]).cpu(), relevance[shown].cpu())


def trained(folder: Path) -> tuple[Any, Any]:
    """The network of a run's last checkpoint, in evaluation mode, and the test set."""
    cli = TrainingCLI("test", ["--config", str(folder / "config.yaml"), "--ckpt_path", "last", *_QUIET])
    task: Any = cli.model
    task.load_state_dict(load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"])
    cli.datamodule.setup()
    return task.model.eval(), cli.datamodule.splits.test


def _draw(found: dict[str, Looked], folder: Path, quick: bool) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = plot_deletion({key: seed.curves["morf"] for key, seed in found.items()}, ax=figure.subplots())
    axes.set_title(heading("most relevant patches first, seed 0", quick), fontsize="medium")
    figure.savefig(folder / "deletion.png", dpi=150)

    figure = Figure(figsize=(1.5 * SHOWN, 1.6 * (len(found) + 1)), layout="constrained")
    places = figure.subplots(len(found) + 1, SHOWN)
    for row, (key, seed) in enumerate(found.items(), start=1):
        for column, (pixels, relevance) in enumerate(zip(seed.pixels, seed.relevance, strict=True)):
            plot_relevance(pixels, relevance, alpha=0.0, ax=places[0, column])
            plot_relevance(pixels, relevance, ax=places[row, column])
        places[row, 0].set_title(key, loc="left", fontsize="small")
    places[0, 0].set_title("image", loc="left", fontsize="small")
    title = f"relevance ({HOW} of the attention, mean over heads and layers), seed 0"
    figure.suptitle(heading(title, quick), fontsize="small")
    figure.savefig(folder / "relevance.png", dpi=150)
