"""What trained networks read: received attention before and after training, sinks, lines, shells, linkage reliance."""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.llm_windows.network import WINDOWS, PromptNetwork, WindowChoice
from experiments.llm_windows.tasks import Task, make_task
from experiments.llm_windows.train import evaluation_trees, folder_of, make_network
from experiments.paired import spread
from experiments.runs import heading
from graphattn.insight import (
    PERTURBATIONS,
    AttentionDistance,
    DistanceProfile,
    KeptMaps,
    OffsetMeans,
    Received,
    ReceivedAttention,
    SkewedLines,
    capture,
    compare_received,
    local_and_global,
    sinks_of,
    skewed_lines,
    token_distance,
    topology_alignment,
    tree_distance,
    u_shape,
    waad,
)
from graphattn_datasets.text_graphs import EgoTrees

__all__ = ["BINS", "Reading", "look", "read"]

SHOWN = ("uni-4", "uni-2", "bidi-2")
PROMPTS = 64
BINS = 20
"""Places along the node tokens of a prompt, since trees differ in size."""


class Reading(NamedTuple):
    """What a network reads in some prompts; by layer, mean over heads where not said otherwise.

    Args:
        received: float64 ``[layers, B, T]`` from all tokens.
        text: bool ``[B, T]``: words, and the copy of the centre.
        node: bool ``[B, T]``.
        curves: By ``"node"`` and ``"text"`` (who reads): float64 ``[layers, BINS]`` attention received by node tokens
            in order.
        alignment: By the same: mean rank correlation with nearness to the centre, over prompts and layers.
        u_shape: By the same: of the curves, mean over layers.
        sinks: Node tokens of a prompt that are sinks, mean over prompts, layers and heads.
        lines: By layer, offsets of skewed lines between node tokens, all prompts and heads together.
        shells: float64 ``[2, L2 + 1]`` share of the attention that node tokens give to node tokens, by tree distance;
            and of even reading.
        waad: Mean WAAD of local heads over node tokens, and of all heads.
        maps: float64 ``[layers, T, T]`` of the first prompt.
    """

    received: Tensor
    text: Tensor
    node: Tensor
    curves: dict[str, Tensor]
    alignment: dict[str, float]
    u_shape: dict[str, float]
    sinks: float
    lines: list[list[int]]
    shells: Tensor
    waad: tuple[float, float]
    maps: Tensor


def look(out: Path, results: dict[str, dict[int, dict[str, Any]]], device: str, quick: bool) -> str:
    """Write ``look.md``, ``look.json`` and pictures into the folder of a comparison; the text.

    Args:
        out: The folder.
        results: See :func:`experiments.llm_windows.report.read_results`.
        device: Where to run.
        quick: The runs were quick ones, and text and pictures say so.
    """
    from experiments.llm_windows.pictures import draw

    shown = [name for name in SHOWN if 0 in results.get(name, {})]
    found: dict[str, tuple[Reading, Reading]] = {}
    prompts: dict[str, Tensor] = {}
    for name in shown:
        task = make_task(results[name][0]["config"], 0, device)
        prompts = task.prompts(EgoTrees(*(x[:PROMPTS] for x in evaluation_trees(task, "test"))))
        before, after = make_network(task, 0, device), trained(task, out, name, 0, device)
        found[name] = (
            read(before, task, prompts, WINDOWS[name]),
            read(after, task, prompts, WINDOWS[name]),
        )
    text = _text(found, results, quick)
    if found:
        draw(found, prompts, out, quick)
    (out / "look.md").write_text(text, encoding="utf-8")
    (out / "look.json").write_text(json.dumps(_numbers(found), indent=1) + "\n")
    return text


def trained(task: Task, out: Path, window: str, seed: int, device: str) -> PromptNetwork:
    """The network of a run."""
    network = make_network(task, seed, device)
    path = folder_of(out, window, seed) / "network.pt"
    network.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return network


@torch.no_grad()
def read(network: PromptNetwork, task: Task, prompts: dict[str, Tensor], window: WindowChoice) -> Reading:
    """Capture one pass over prompts and measure it."""
    vertex, there = prompts["node_of_token"], prompts["attention_mask"]
    node = vertex >= 0
    text = there & ~node
    largest = 2 * task.depth
    distance = token_distance(tree_distance(prompts["parents"], largest), vertex).unsqueeze(1)
    reducers = {
        "all": partial(ReceivedAttention, there.unsqueeze(1)),
        "node": partial(ReceivedAttention, node.unsqueeze(1)),
        "text": partial(ReceivedAttention, text.unsqueeze(1)),
        "lift": partial(ReceivedAttention, node.unsqueeze(1), lift=True),
        "lines": partial(SkewedLines, vertex.unsqueeze(1)),
        "shells": partial(DistanceProfile, distance, largest),
        "span": AttentionDistance,
        "waad": waad,
        "map": KeptMaps,
    }
    network.eval()
    with capture(network, reducers) as layers:
        network(prompts, window, task.depth)
    found = [entry.results for entry in layers]
    depth = torch.where(node, prompts["depths"].gather(1, vertex.clamp(min=0)), -1)
    heads = {key: torch.stack([entry[key].attention.mean(1) for entry in found]) for key in ("all", "node", "text")}
    curves = {key: _curve(heads[key], prompts) for key in ("node", "text")}
    shells = torch.stack([torch.stack(entry["shells"].shares(node.unsqueeze(1))) for entry in found])
    return Reading(
        heads["all"],
        text,
        node,
        curves,
        {key: float(topology_alignment(heads[key], depth).nanmean()) for key in ("node", "text")},
        {key: float(u_shape(curves[key]).mean()) for key in ("node", "text")},
        statistics.fmean(_sinks(entry["lift"], node, depth) for entry in found),
        [_lines(entry["lines"]) for entry in found],
        shells.mean((0, 2, 3)).cpu(),  # layers, prompts and heads
        _waad(found, node),
        torch.cat([entry["map"] for entry in found]),
    )


def _curve(received: Tensor, prompts: dict[str, Tensor]) -> Tensor:
    """Means of received attention by place along the node tokens: ``[layers, BINS]``."""
    vertex = prompts["node_of_token"]
    count = (prompts["nodes"] >= 0).sum(1, keepdim=True)
    place = torch.where(vertex >= 0, vertex * BINS // count, BINS).flatten()
    total = received.new_zeros(len(received), BINS + 1).index_add_(1, place, received.flatten(1))
    number = place.bincount(minlength=BINS + 1)
    return (total / number.clamp(min=1))[:, :BINS]


def _sinks(received: Received, node: Tensor, depth: Tensor) -> float:
    """Sinks among node tokens, a prompt and head."""
    own = received._replace(readers=torch.where(node.unsqueeze(1), received.readers, 0))
    found = sinks_of(own, depth.unsqueeze(1)).is_sink
    return float(found.sum()) / (found.shape[0] * found.shape[1])


def _lines(means: OffsetMeans) -> list[int]:
    return skewed_lines(means.over((0, 1)), min_pairs=PROMPTS).is_line.nonzero().flatten().tolist()


def _waad(found: list[dict[str, Any]], node: Tensor) -> tuple[float, float]:
    """Mean over node tokens, of local heads and of all."""
    keep = node.unsqueeze(1)
    spans, distances = ([(entry[key] * keep).sum((0, 2)) / keep.sum() for entry in found] for key in ("span", "waad"))
    near = local_and_global(spans).near
    return statistics.fmean(float(distances[layer][head]) for layer, head in near), float(torch.cat(distances).mean())


def _text(found: dict[str, tuple[Reading, Reading]], results: dict[str, dict[int, dict[str, Any]]], quick: bool) -> str:
    attention = f"Attention before and after training (seed 0, {PROMPTS} test prompts, mean over layers and heads)"
    lines = [
        f"## {heading('Linkage reliance', quick)}",
        "",
        "Points of test accuracy lost when links are wrong, in the training window, mean ± deviation over seeds: two "
        "neighbours exchange their children (I), children change places (II), all nodes are shuffled (III), about half "
        "are replaced by nodes of other prompts (IV).",
        "",
        f"| trained in | accuracy | {' | '.join(PERTURBATIONS)} |",
        "|---|---:|" + "---:|" * len(PERTURBATIONS),
    ]
    for name, runs in results.items():
        own = spread([run["test"][name] for run in runs.values()], 1)
        cells = [own, *(spread([run["reliance"][level] for run in runs.values()], 1) for level in PERTURBATIONS)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"## {heading(attention, quick)}",
        "",
        "Received attention: Kolmogorov-Smirnov statistic and Jensen-Shannon divergence (nats) of its logarithms. "
        "Alignment: rank correlation of a node's received attention with its nearness to the centre. U: received at "
        "both ends of the node tokens over the middle. Sinks: a prompt and head. WAAD: of local / all heads.",
        "",
        "| trained in | KS text | KS node | JS text | JS node | JS text / node, before | after |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (before, after) in found.items():
        shifts = [compare_received(before.received[:, x], after.received[:, x]) for x in (before.text, before.node)]
        between = [compare_received(r.received[:, r.text], r.received[:, r.node]) for r in (before, after)]
        numbers = [*(s.ks for s in shifts), *(s.js for s in shifts), *(s.js for s in between)]
        lines.append(f"| {name} | {' | '.join(f'{x:.3f}' for x in numbers)} |")
    lines += [
        "",
        "| trained in | | alignment, node reads | text reads | U, node reads | text reads | sinks | lines at offsets "
        "| WAAD |",
        "|---|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for name, pair in found.items():
        for when, r in zip(("before", "after"), pair, strict=True):
            cells = [f"{r.alignment[k]:.2f}" for k in ("node", "text")] + [
                f"{r.u_shape[k]:.2f}" for k in ("node", "text")
            ]
            offsets = sorted({offset for layer in r.lines for offset in layer})
            told = ", ".join(map(str, offsets)) or "none"
            cells += [f"{r.sinks:.2f}", told, "{:.2f} / {:.2f}".format(*r.waad)]
            lines.append(f"| {name} | {when} | {' | '.join(cells)} |")
    lines += ["", "Share of the attention between node tokens, by tree distance (in brackets: of even reading):", ""]
    distances = range(next(iter(found.values()))[0].shells.shape[1]) if found else range(0)
    lines += [f"| trained in | {' | '.join(map(str, distances))} |", "|---|" + "---:|" * len(distances)]
    for name, (_, after) in found.items():
        cells = [f"{float(mine):.3f} ({float(even):.3f})" for mine, even in after.shells.T]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _numbers(found: dict[str, tuple[Reading, Reading]]) -> dict[str, Any]:
    numbers = {}
    for name, pair in found.items():
        for when, r in zip(("before", "after"), pair, strict=True):
            numbers[f"{name} {when}"] = {
                "curves": {key: curve.tolist() for key, curve in r.curves.items()},
                "shells": r.shells.tolist(),
                "alignment": r.alignment,
                "u_shape": r.u_shape,
                "sinks": r.sinks,
                "lines": r.lines,
                "waad": r.waad,
            }
    return numbers
