"""A picture of learned graphs: what some patches of some images read, by predictor and oracle, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.images import evenly
from experiments.runs import heading
from experiments.sparsifiner.stages import state_path
from experiments.sparsifiner.variants import Variant

__all__ = ["look"]

IMAGES = 4


def look(config: dict[str, Any], out: Path, seed: int, variants: Sequence[Variant], quick: bool) -> Path:
    """Draw ``graphs.png``.

    For each image, the patch that deviates most from the mean asks. A filled square is a patch that it reads, a ring
    one that the true attention would choose, of as many keys; both are the more opaque the more heads do.

    Args:
        config: Of the teacher.
        out: Where the weights are, and where the picture goes.
        seed: Whose networks.
        variants: All; those of the predictor by position are drawn, at their smallest keep rate of 0.1 or more.
        quick: The networks are of a quick run, and the picture says so.
    """
    from matplotlib.figure import Figure

    from experiments.sparsifiner.build import data_of, network_of

    chosen = min((v for v in variants if v.kind == "sparsifiner"), key=lambda v: v.keep)
    data = data_of(config, seed)
    data.setup()
    splits: Any = data.splits
    images: Tensor = splits.test[evenly(len(splits.test), IMAGES)]["x"]
    network = network_of(config, chosen)
    network.load_state_dict(torch.load(state_path(out, seed, chosen.name), weights_only=True))
    graphs = chosen_and_best(network.eval(), images)
    rows, columns = network.patch_embed.grid_size
    prefix, depth = network.num_prefix_tokens, len(graphs)
    high, wide = network.patch_embed.patch_size
    energy = images.square().mean(1, keepdim=True)
    busy = torch.nn.functional.avg_pool2d(energy, (high, wide)).flatten(1).argmax(1)

    figure = Figure(figsize=(1.5 * (depth + 1), 1.6 * IMAGES), layout="constrained")
    places = figure.subplots(IMAGES, depth + 1, squeeze=False)
    shown = splits.test.pixels(images).permute(0, 2, 3, 1).squeeze(-1).numpy()
    for n in range(IMAGES):
        asking = int(busy[n])
        for column in range(depth + 1):
            axes = places[n, column]
            axes.imshow(shown[n], cmap="gray", alpha=1.0 if column == 0 else 0.55)
            axes.set_axis_off()
            _square(axes, asking, columns, (high, wide), edgecolor="C2", facecolor="none", linewidth=1.5)
            if column == 0:
                continue
            mine, best = (mask[n, :, asking, prefix:].float().mean(0) for mask in graphs[column - 1])
            for patch in range(rows * columns):
                if mine[patch] > 0:
                    share = 0.75 * float(mine[patch])
                    _square(axes, patch, columns, (high, wide), facecolor="C1", alpha=share, linewidth=0)
                if best[patch] > 0:
                    _ring(axes, patch, columns, (high, wide), alpha=float(best[patch]))
            if n == 0:
                axes.set_title(f"layer {column}", fontsize="small")
    title = (
        f"what one patch (green) reads at keep {chosen.keep}: chosen (orange) and\n"
        "the true attention's own choice (rings); opaque: by all heads"
    )
    figure.suptitle(heading(title, quick), fontsize="small")
    path = out / "graphs.png"
    figure.savefig(path, dpi=160)
    return path


@torch.no_grad()
def chosen_and_best(network: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each layer what is read and what the true attention would choose: bool ``[B, H, patches, tokens]``."""
    from graphattn.mechanisms import Sparsifiner

    layers = [module for module in network.modules() if isinstance(module, Sparsifiner)]
    for layer in layers:
        layer.seen = []
    network(images)
    found = []
    for layer in layers:
        assert layer.seen is not None
        call, layer.seen = layer.seen[0], None
        mine = layer.chosen(call)
        attention = layer.attention(call.graph, call.q, call.k)
        rank = attention.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        found.append((mine, rank < mine.sum(-1, keepdim=True)))
    return found


def _square(axes: Any, patch: int, columns: int, size: tuple[int, int], **style: Any) -> None:
    from matplotlib.patches import Rectangle

    corner = (patch % columns * size[1] - 0.5, patch // columns * size[0] - 0.5)
    axes.add_patch(Rectangle(corner, size[1], size[0], **style))


def _ring(axes: Any, patch: int, columns: int, size: tuple[int, int], alpha: float) -> None:
    from matplotlib.patches import Circle

    middle = ((patch % columns + 0.5) * size[1] - 0.5, (patch // columns + 0.5) * size[0] - 0.5)
    axes.add_patch(Circle(middle, 0.3 * min(size), edgecolor="C0", facecolor="none", linewidth=1.2, alpha=alpha))
