"""One picture: how many times longer than ours every peer takes, workload by workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.benchmarks.row import Row

__all__ = ["draw"]

_STYLES = {
    "PyG": ("o", "tab:red"),
    "torch": ("s", "tab:orange"),
    "torch.compile": ("D", "tab:olive"),
    "torch.sparse": ("v", "tab:brown"),
    "torch-scatter": ("<", "tab:pink"),
    "DGL": (">", "tab:gray"),
    "anemoi-models": ("P", "tab:purple"),
    "turbo-gnn": ("X", "tab:cyan"),
    "FlexAttention": ("*", "tab:green"),
    "FlexAttention 64": ("*", "lightgreen"),
    "SDPA mask": ("^", "tab:blue"),
    "SDPA cuDNN": ("^", "navy"),
    "SDPA flash": ("v", "navy"),
    "SDPA efficient": ("d", "navy"),
    "SDPA cuDNN bias": ("^", "skyblue"),
    "SDPA efficient bias": ("d", "skyblue"),
    "gather roof": ("|", "black"),
}


def draw(rows: list[Row], path: Path, about: dict[str, Any]) -> None:
    """Dots on a log scale; 1 is ours. Nothing is drawn where no workload has a time of ours."""
    passes = ["forward", "forward+backward"]
    ours = {(row.workload, row.what): row.ms for row in rows if row.peer == "ours" and row.ms}
    names = [name for name in dict.fromkeys(row.workload for row in rows) if any((name, p) in ours for p in passes)]
    if not names:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.32 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    handles: dict[str, Any] = {}
    for axes, what in zip(panels, passes, strict=True):
        for height, name in enumerate(names):
            mine = ours.get((name, what))
            for row in rows:
                if mine and row.ms and row.workload == name and row.what == what and not row.peer.startswith("ours"):
                    marker, color = _STYLES.get(row.peer, ("d", "navy"))
                    size = 11 if marker in "|*" else 7
                    (handle,) = axes.plot(
                        row.ms / mine, height, marker, color=color, markersize=size, markeredgewidth=1.5, alpha=0.85
                    )
                    handles.setdefault(row.peer, handle)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(what, fontsize="medium")
        axes.set_xlabel("time / time of graphattn (left of 1: faster)")
        axes.grid(axis="x", which="both", alpha=0.25)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize="small")
    title = f"{about['device']}, torch {about['packages']['torch']}, commit {about['commit']}"
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=150)
