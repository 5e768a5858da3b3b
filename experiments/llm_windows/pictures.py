"""Pictures of what trained networks read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.runs import heading
from graphattn.insight import find_sinks, plot_map, plot_tree

if TYPE_CHECKING:
    from experiments.llm_windows.look import Reading

__all__ = ["draw"]


def draw(found: dict[str, tuple[Reading, Reading]], prompts: dict[str, Tensor], folder: Path, quick: bool) -> None:
    """``maps.png``, ``received.png``, ``shells.png`` and ``tree.png``.

    Args:
        found: Readings before and after training, by window.
        prompts: What was read; maps and trees are of the first.
        folder: Where to.
        quick: The networks are of quick runs, and each picture says so.
    """
    _maps(found, prompts, folder / "maps.png", quick)
    _received(found, folder / "received.png", quick)
    _shells(found, folder / "shells.png", quick)
    _tree(found, prompts, folder / "tree.png", quick)


def _figure(width: float, height: float, title: str, quick: bool):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(heading(title, quick), fontsize="small")
    return figure


def _maps(found: dict[str, tuple[Reading, Reading]], prompts: dict[str, Tensor], path: Path, quick: bool) -> None:
    """Maps between the node tokens of the first prompt, a row a network and a column a layer."""
    tokens = (prompts["node_of_token"][0] >= 0).nonzero().flatten().cpu()
    first = [v for v, depth in enumerate(prompts["depths"][0].tolist()) if depth == 1]
    depth = prompts["depths"][0][: len(tokens)].cpu()
    rows = [(f"{name}, before training", pair[0]) for name, pair in list(found.items())[:1]]
    rows += [(f"{name}, trained", pair[1]) for name, pair in found.items()]
    layers = len(rows[0][1].maps)
    title = "attention between the node tokens of one prompt, mean over heads\n"
    title += "thin lines: subtrees; triangles: sinks; red lines: skewed lines of all prompts"
    figure = _figure(3.6 * layers, 3.3 * len(rows), title, quick)
    places = figure.subplots(len(rows), layers, squeeze=False)
    for row, (name, reading) in enumerate(rows):
        for layer in range(layers):
            own = reading.maps[layer].cpu()[tokens][:, tokens]
            sinks = find_sinks(own, depth=depth).is_sink
            ax = plot_map(own, sinks=sinks, lines=reading.lines[layer], groups=first, ax=places[row, layer])
            ax.set_title(f"{name}, layer {layer + 1}" if layer == 0 else f"layer {layer + 1}", fontsize="small", pad=12)
    figure.savefig(path, dpi=110)


def _received(found: dict[str, tuple[Reading, Reading]], path: Path, quick: bool) -> None:
    figure = _figure(10, 4, "attention that node tokens receive", quick)
    for ax, key in zip(figure.subplots(1, 2), ("node", "text"), strict=True):
        for number, (name, pair) in enumerate(found.items()):
            for reading, style in zip(pair, ("--", "-"), strict=True):
                curve = reading.curves[key].mean(0).cpu()
                place = (torch.arange(len(curve)) + 0.5) / len(curve)
                label = f"{name}, {'trained' if style == '-' else 'before'}"
                ax.plot(place.numpy(), curve.numpy(), style, color=f"C{number}", label=label)
        ax.set_xlabel("place among the node tokens")
        ax.set_ylabel("attention received")
        ax.set_title(f"{key} tokens read node tokens, mean over layers and heads", fontsize="small")
        ax.set_yscale("log")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="x-small")
    figure.savefig(path, dpi=130)


def _shells(found: dict[str, tuple[Reading, Reading]], path: Path, quick: bool) -> None:
    figure = _figure(3.4 * max(2, len(found)), 3.4, "attention by tree distance", quick)
    places = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for ax, (name, (before, after)) in zip(places, found.items(), strict=True):
        distance = torch.arange(after.shells.shape[1])
        bars = (("even reading", after.shells[1], "0.7"), ("before", before.shells[0], "C0"))
        for number, (label, values, color) in enumerate((*bars, ("trained", after.shells[0], "C1"))):
            ax.bar(distance + 0.27 * (number - 1), values.numpy(), 0.26, label=label, color=color)
        ax.set_title(name, fontsize="small")
        ax.set_xlabel("tree distance")
    places[0].set_ylabel("share of attention between node tokens")
    places[0].legend(fontsize="small")
    figure.savefig(path, dpi=130)


def _tree(found: dict[str, tuple[Reading, Reading]], prompts: dict[str, Tensor], path: Path, quick: bool) -> None:
    """The first prompt's tree, with what each node receives from all tokens in the last layer."""
    tokens = (prompts["node_of_token"][0] >= 0).nonzero().flatten().cpu()
    parent = prompts["parents"][0][: len(tokens)].cpu()
    figure = _figure(10, 2.6 * len(found), "attention that the nodes of one prompt receive", quick)
    for ax, (name, (_, after)) in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found.items(), strict=True):
        plot_tree(parent, after.received[-1, 0].cpu()[tokens], ax=ax)
        ax.set_aspect("auto")
        ax.set_title(f"{name}, trained, last layer", fontsize="small")
    figure.savefig(path, dpi=110)
