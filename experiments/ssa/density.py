"""How likely a target reads a source, by the distance between them, for SSA's schemes.

python -m experiments.ssa.density --out runs/density.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn import patterns
from graphattn.mechanisms import SSA, MultiheadAttention

__all__ = ["coverage", "draw", "main", "profile"]

TOKENS, SIDE, KEEP, DRAWS = 256, 16, 0.25, 400


class Case(NamedTuple):
    """A scheme and its name in the picture."""

    name: str
    scheme: str
    sigma: float | None = None
    shape: tuple[int, int] | None = None
    causal: bool = False


LINE = (
    Case("uniform", "uniform"),
    Case("local, sigma 0", "local", 0.0),
    Case("local, sigma 16", "local", 16.0),
    Case("local, sigma 64 (the default)", "local"),
    Case("local, sigma 256", "local", 256.0),
)
GRID = (
    Case("uniform", "uniform"),
    Case("local, sigma 0", "local", 0.0, (SIDE, SIDE)),
    Case("local, sigma 2", "local", 2.0, (SIDE, SIDE)),
    Case("local, sigma 8", "local", 8.0, (SIDE, SIDE)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ssa-density.png"))
    options = parser.parse_args(argv)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(options.out)
    print(options.out)
    return 0


def coverage(case: Case, draws: int = DRAWS, tokens: int = TOKENS, keep: float = KEEP) -> Tensor:
    """``[N, N]``: how often each target read each source."""
    module = SSA(MultiheadAttention(8, 1), keep, case.scheme, sigma=case.sigma, shape=case.shape)
    module.generator = torch.Generator().manual_seed(0)
    graph = patterns.causal(tokens) if case.causal else patterns.complete(tokens)
    return module.draw(graph, draws).graph.to_dense().float().mean(0)


def profile(read: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean share of pairs that were edges at each whole distance."""
    step = distance.round().long().flatten()
    count = torch.bincount(step)
    total = torch.bincount(step, weights=read.flatten().double())
    present = count > 0
    return torch.arange(len(count))[present], (total / count.clamp(min=1))[present]


def draw(path: Path, draws: int = DRAWS) -> None:
    """The picture: densities by distance along a line and on a grid, and four sub-graphs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    token = torch.arange(TOKENS)
    along = (token[:, None] - token).abs()
    cell = torch.stack([token // SIDE, token % SIDE], -1).double()
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 4)
    panels = (
        (grid[0, :2], LINE, along, "distance in a sequence"),
        (grid[0, 2:], GRID, torch.cdist(cell, cell), "distance on a 16 x 16 grid"),
    )
    for place, cases, distance, label in panels:
        axes = figure.add_subplot(place)
        for case in cases:
            where, share = profile(coverage(case, draws), distance.double())
            axes.plot(where.numpy(), share.numpy(), lw=1.6, label=case.name)
        axes.axhline(KEEP, color="grey", lw=0.8, ls=":")
        axes.set_xlabel(label)
        axes.set_ylabel("share of pairs that are edges")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    shown = (LINE[0], LINE[2], LINE[3], LINE[2]._replace(name="causal: local, sigma 16", causal=True))
    for column, case in enumerate(shown):
        axes = figure.add_subplot(grid[1, column])
        axes.imshow(coverage(case, 1).numpy(), cmap="Greys", interpolation="nearest", vmin=0, vmax=1)
        axes.set_title(f"one draw: {case.name}", fontsize="small")
        axes.set_xlabel("source")
        axes.set_ylabel("target" if column == 0 else "")
    figure.suptitle(f"SSA keeps {KEEP:g} of {TOKENS} sources; densities over {draws} draws", fontsize=11)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
