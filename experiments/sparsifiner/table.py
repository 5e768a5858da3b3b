"""The table of the comparison: means over seeds, paired differences with their intervals, what layers choose."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.paired import difference, mean_and_deviation, spread
from experiments.runs import heading, made_by
from experiments.sparsifiner.stages import budget_of, result_path
from experiments.sparsifiner.variants import PREDICTORS, Variant

__all__ = ["markdown", "picture", "write_table"]

Figures = dict[str, list[dict[str, Any]]]  # by name, one for each seed


def write_table(
    config: dict[str, Any], out: Path, variants: Sequence[Variant], seeds: Sequence[int], quick: bool
) -> str:
    """Read the figures of all networks and write compare.md, .json, .csv and .png; the text of the first."""
    names = ["teacher", *PREDICTORS, *(v.name for v in variants)]
    found: Figures = {name: [json.loads(result_path(out, s, name).read_text()) for s in seeds] for name in names}
    text = markdown(config, found, variants, quick)
    (out / "compare.md").write_text(text, encoding="utf-8")
    (out / "compare.json").write_text(json.dumps({"seeds": list(seeds), "figures": found}, indent=1) + "\n")
    with (out / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["name", "kind", "keep", "reads", "seed", "accuracy_before", "accuracy", "attention_macs", "network_macs"]
        )
        for v in variants:
            for seed, one in zip(seeds, found[v.name], strict=True):
                before, after = one["before"], one["accuracy"]
                writer.writerow([v.name, v.kind, v.keep, v.reads, seed, before, after, v.attention, v.network])
    picture(found, variants, out / "compare.png", quick)
    return text


def markdown(config: dict[str, Any], found: Figures, variants: Sequence[Variant], quick: bool = False) -> str:
    """The tables as text."""
    data, budget = config["data"]["init_args"]["name"], budget_of(config, quick)
    count = len(found["teacher"])
    title = f"Sparsifiner on {data}: test accuracy, {count} seeds, on {found['teacher'][0]['device']}"
    lines = [
        f"# {heading(title, quick)}",
        "",
        made_by("experiments.sparsifiner.compare"),
        "",
        f"Teacher: {config['trainer']['max_epochs']} epochs, {spread(_column(found['teacher'], 'accuracy'), 2)} %. "
        f"Stage 1: {budget.reconstruction_epochs} epochs, stage 2: {budget.distillation_epochs} epochs, for all. "
        "Mean ± unbiased standard deviation; differences to Sparsifiner at the same keep rate are by seed, with "
        "Student's 95 % interval of their mean.",
        "",
        "| network | keys of a patch | attention MACs (M) | all MACs (M) | before stage 2 | accuracy "
        "| less Sparsifiner, by seed [95 %] | attention kept |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for v in variants:
        mine = found[v.name]
        base = found.get(f"sparsifiner-{v.keep}")
        gap = ""
        if base is not None and v.kind != "sparsifiner":
            gap = difference([a["accuracy"] - b["accuracy"] for a, b in zip(mine, base, strict=True)], 2)
        kept = ""
        if "quality" in mine[0]:
            kept = f"{fmean(layer['retained'] for one in mine for layer in one['quality']):.3f}"
        lines.append(
            f"| {v.name} | {v.reads} | {v.attention / 1e6:.2f} | {v.network / 1e6:.1f} | "
            f"{spread(_column(mine, 'before'), 2)} | {spread(_column(mine, 'accuracy'), 2)} | {gap} | {kept} |"
        )
    lines += [
        "",
        "Attention MACs: products of queries and keys, of weights and values, and the predictor "
        "(graphattn.insight.macs; no basis threshold, so its density is 1). Token pruning has the attention MACs of "
        "Sparsifiner, and saves in projections and feed-forward networks besides. Oracle, window and random graphs "
        "have Sparsifiner's degree; what finding them costs is not counted (for the oracle, all of dense attention). "
        "With equal-macs, windows and random graphs have the most keys whose attention MACs are within Sparsifiner's. "
        "Attention kept: the share of the network's own dense attention on its graph, after stage 2, mean over layers, "
        "heads, patches and test images.",
        "",
        "## Predictors after stage 1: recall@b by layer (attention kept / the oracle's)",
        "",
    ]
    depth = len(next(iter(found["sparsifiner"][0]["quality"].values())))
    lines += [f"| predictor | {' | '.join(f'layer {n + 1}' for n in range(depth))} |", "|---|" + "---:|" * depth]
    for kind in PREDICTORS:
        for name in found[kind][0]["quality"]:
            layers = [[one["quality"][name][n] for one in found[kind]] for n in range(depth)]
            cells = [
                f"{_of(layer, 'recall'):.3f} ({_of(layer, 'retained'):.3f} / {_of(layer, 'best'):.3f})"
                for layer in layers
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(found: Figures, variants: Sequence[Variant], path: Path, quick: bool = False) -> None:
    """Accuracy over the cost of attention, one line for each kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, kind in enumerate(dict.fromkeys(v.kind for v in variants)):
        mine = sorted((v for v in variants if v.kind == kind), key=lambda v: v.attention)
        cost = [v.attention / 1e6 for v in mine]
        columns = [mean_and_deviation(_column(found[v.name], "accuracy")) for v in mine]
        means, deviations = zip(*columns, strict=True)
        if kind == "dense":
            axes.axhline(means[0], color="0.5", linestyle=":", linewidth=1)
        style = {"marker": "os^vDxP*"[number % 8], "markersize": 5, "linewidth": 1.2, "capsize": 3}
        axes.errorbar(cost, means, yerr=deviations, label=kind, color=f"C{number}", **style)
    axes.set_xlabel("multiply-accumulates of attention and predictor (million)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(heading("mean and standard deviation over seeds; dotted: dense", quick), fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _column(found: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [one[key] for one in found]


def _of(layers: Sequence[dict[str, Any]], key: str) -> float:
    return fmean(layer[key] for layer in layers)
