"""The tasks: a graph, how prompts are written about it, and which of its nodes are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torch.nn import functional

from experiments.llm_windows.synthetic import mixing_graph
from graphattn.errors import ConfigError
from graphattn_datasets.text_graphs import (
    EgoTrees,
    PromptWriter,
    TextGraph,
    load_text_graph,
    sample_trees,
    word_tokens,
)

__all__ = ["SPLITS", "TASKS", "Task", "configuration", "make_task"]

TASKS = ("synthetic", "synthetic-small", "cora", "squirrel")
SPLITS = ("train", "val", "test")
_FOLDER = Path(__file__).parent


def configuration(task: str, *, quick: bool = False, **changes: Any) -> dict[str, Any]:
    """The configuration of a task, ``<task>.yaml`` of this folder.

    Args:
        task: One of :data:`TASKS`.
        quick: With the changes that make it run in seconds on a CPU.
        **changes: Further ones.
    """
    if task not in TASKS:
        raise ConfigError(f"task must be one of {TASKS}, got {task!r}")
    config = yaml.safe_load((_FOLDER / f"{task}.yaml").read_text(encoding="utf-8"))
    small = config.pop("quick")
    config = {**config, **(small if quick else {}), **changes}
    return config


class Task(NamedTuple):
    """A task on a device.

    Args:
        config: Its configuration.
        graph: The graph.
        writer: Of prompts.
        centres: int64 ``[C]`` of each split: the nodes to classify.
        length: Tokens of a prompt, padding included: those of the longest that there can be.
    """

    config: dict[str, Any]
    graph: TextGraph
    writer: PromptWriter
    centres: dict[str, Tensor]
    length: int

    def trees(self, centres: Tensor, generator: torch.Generator) -> EgoTrees:
        """Trees sampled around nodes."""
        return sample_trees(self.graph.rowptr, self.graph.col, centres, self.config["fan_out"], generator)

    def prompts(self, trees: EgoTrees) -> dict[str, Tensor]:
        """Prompts about trees, without answers; all of a task have one width, and one number of vertices."""
        y = self.graph.y[trees.node[:, 0]]
        missing = len(_whole_tree(self.config["fan_out"])[0]) - trees.node.shape[1]
        trees = EgoTrees(*(functional.pad(x, (0, missing), value=-1) for x in trees))
        return self.writer(trees, y, answer=False, length=self.length)

    @property
    def depth(self) -> int:
        """Hops of the trees: L."""
        return len(self.config["fan_out"])


def make_task(config: dict[str, Any], seed: int, device: str) -> Task:
    """The task of a configuration.

    Args:
        config: See :func:`configuration`.
        seed: Of the split of nodes (squirrel: which of the ten official ones; the generated graph: of the graph).
        device: Where everything lies.
    """
    graph = _graph(config, seed)
    if graph.split is None:
        raise ConfigError(f"{graph.name} has no split")
    known = word_tokens(graph.texts, graph.classes, config.get("words"))
    writer = PromptWriter(config["template"], graph.classes, known, graph.texts, config.get("text_tokens", [0]))
    centres = {}
    generator = torch.Generator().manual_seed(seed)
    for number, name in enumerate(SPLITS):
        found = (graph.split == number).nonzero().flatten()
        most = config.get(f"{name}_nodes")
        if most is not None:
            found = found[torch.randperm(len(found), generator=generator)[:most]]
        centres[name] = found.to(device)
    length = _longest(writer, graph, config["fan_out"])
    return Task(config, graph.to(device), writer.to(device), centres, length)


def _longest(writer: PromptWriter, graph: TextGraph, fan_out: Sequence[int]) -> int:
    """Tokens of the longest prompt that there can be: a tree of all its vertices, each with the longest text."""
    parent, depth = _whole_tree(fan_out)
    node = torch.arange(graph.num_nodes if graph.texts else 1).unsqueeze(1).expand(-1, len(parent))
    trees = EgoTrees(node, parent.expand(node.shape), depth.expand(node.shape))
    return int(writer(trees, torch.zeros(len(node), dtype=torch.int64), answer=False)["tokens"].shape[1])


def _whole_tree(fan_out: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Parents and depths of a tree, in pre-order, in which every vertex has all its children."""
    parent, depth = [-1], [0]

    def grow(vertex: int, below: int) -> None:
        if below < len(fan_out):
            for _ in range(fan_out[below]):
                parent.append(vertex)
                depth.append(below + 1)
                grow(len(parent) - 1, below + 1)

    grow(0, 0)
    return torch.tensor(parent), torch.tensor(depth)


def _graph(config: dict[str, Any], seed: int) -> TextGraph:
    name, options = config["graph"], config.get("graph_options", {})
    if name == "mixing":
        return mixing_graph(seed=seed, **options)
    if name == "squirrel_filtered":
        from graphattn_datasets import load_dataset

        data = load_dataset(name, split_index=seed % 10)[0]
        return TextGraph.from_data(data, name=name)
    return load_text_graph(name, seed=seed, **options)
