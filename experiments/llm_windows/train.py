"""One run: a network trained in one window and evaluated in all.

    python -m experiments.llm_windows.train --task synthetic --window uni-2 --seed 0 --out runs/llm-windows/synthetic

Writes <out>/<window>/seed-<seed>/result.json, network.pt (the best weights by validation in the training window) and
curve.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.llm_windows.network import WINDOWS, PromptNetwork, WindowChoice
from experiments.llm_windows.tasks import TASKS, Task, configuration, make_task
from graphattn.insight import linkage_reliance
from graphattn.training.captured import Recording
from graphattn.training.padding import TensorBatch
from graphattn_datasets.text_graphs import EgoTrees

__all__ = ["accuracy", "evaluation_prompts", "evaluation_trees", "folder_of", "main", "make_network", "train"]


def folder_of(out: Path, window: str, seed: int) -> Path:
    """Where a run's files are."""
    return out / window / f"seed-{seed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--window", required=True, choices=list(WINDOWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--train-nodes", type=int, help="train on so many nodes only")
    parser.add_argument("--quick", action="store_true", help="a small network, few steps")
    options = parser.parse_args(argv)
    changes = {} if options.train_nodes is None else {"train_nodes": options.train_nodes}
    config = configuration(options.task, quick=options.quick, **changes)
    train(config, options.window, options.seed, options.device, folder_of(options.out, options.window, options.seed))
    return 0


def train(config: dict[str, Any], window: str, seed: int, device: str, folder: Path) -> dict[str, Any]:
    """Train in a window, evaluate in all, write the files; what ``result.json`` holds."""
    begin = time.perf_counter()
    task = make_task(config, seed, device)
    network = make_network(task, seed, device)
    chance = torch.Generator(device).manual_seed(1000 + seed)
    fixed = {name: evaluation_prompts(task, name) for name in ("val", "test")}
    labels = task.writer.label_tokens
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config["lr"], weight_decay=config["weight_decay"], fused=device != "cpu"
    )
    steps, batch = config["steps"], config["batch"]
    warm = max(1, round(config["warmup"] * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
    )
    every = max(1, steps // config["evaluations"])
    best, weights, curve, losses = -1.0, {}, [], torch.zeros((), device=device)
    supply = _Supply(task, batch, chance)
    prompts = supply.next()
    place = TensorBatch(prompts)

    def descend() -> Tensor:
        here = place.ready()
        with _half(device):
            scores = network(here, WINDOWS[window], task.depth)
        loss = F.cross_entropy(scores.float(), labels[here["y"]], label_smoothing=config["label_smoothing"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), config["clip"])
        optimizer.step()
        return loss.detach()

    recording = Recording(descend, optimizer, device)
    for step in range(1, steps + 1):
        network.train()
        place.fill(prompts)
        losses += recording()
        schedule.step()
        prompts = supply.next()
        if step % every == 0 or step == steps:
            found = accuracy(network, task, fixed["val"], WINDOWS[window])
            count = step - (curve[-1][0] if curve else 0)
            curve.append((step, float(losses) / count, found))
            losses.zero_()
            print(f"step {step}: loss {curve[-1][1]:.4f}, validation {found:.2f} %", flush=True)
            if not math.isfinite(curve[-1][1]):
                raise RuntimeError(f"the loss is {curve[-1][1]} at step {step}")
            if found > best:
                best = found
                weights = {name: x.detach().clone() for name, x in network.state_dict().items()}
    trained = time.perf_counter() - begin
    network.load_state_dict(weights)
    result = {
        "task": config["name"],
        "window": window,
        "seed": seed,
        "validation": best,
        "test": {name: accuracy(network, task, fixed["test"], choice) for name, choice in WINDOWS.items()},
        "reliance": reliance(network, task, window, seed),
        "parameters": sum(x.numel() for x in network.parameters()),
        "tokens": int(fixed["test"]["tokens"].shape[1]),
        "nodes": {name: len(found) for name, found in task.centres.items()},
        "majority": 100.0 * float(fixed["test"]["y"].bincount().max()) / len(fixed["test"]["y"]),
        "seconds": trained,
        "seconds_in_all": time.perf_counter() - begin,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "config": config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "network.pt")
    with (folder / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("step", "loss", "validation"), *curve])
    temporary = folder / "result.json.tmp"  # last, and at once: a result says that a run is whole
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "result.json")
    return result


def make_network(task: Task, seed: int, device: str) -> PromptNetwork:
    """The network of a task as a seed draws it."""
    torch.manual_seed(seed)
    config = task.config
    names = ("width", "heads", "layers", "dropout", "feature_dropout")
    options = {name: config[name] for name in names}
    return PromptNetwork(task.writer.tokens.size, task.graph.x, **options).to(device)


def evaluation_prompts(task: Task, split: str) -> dict[str, Tensor]:
    """Prompts about the nodes of a split, the same in all runs of a seed."""
    return task.prompts(evaluation_trees(task, split))


def evaluation_trees(task: Task, split: str) -> EgoTrees:
    """The trees of these prompts."""
    generator = torch.Generator(task.graph.x.device).manual_seed(7 + len(split))
    return task.trees(task.centres[split], generator)


@torch.no_grad()
def accuracy(
    network: PromptNetwork, task: Task, prompts: dict[str, Tensor], window: WindowChoice, size: int = 512
) -> float:
    """Share of prompts, in %, whose next word is the name of the class, among all words."""
    network.eval()
    y, labels = prompts["y"], task.writer.label_tokens
    hits = torch.zeros((), device=y.device)
    for first in range(0, len(y), size):
        part = {name: x[first : first + size] for name, x in prompts.items()}
        with _half(str(y.device)):
            scores = network(part, window, task.depth)
        hits += (scores.argmax(1) == labels[part["y"]]).sum()
    return 100.0 * float(hits) / max(1, len(y))


def reliance(network: PromptNetwork, task: Task, window: str, seed: int) -> dict[str, float]:
    """Points of test accuracy lost on perturbed trees (:func:`graphattn.insight.linkage_reliance`), in a window."""
    device = task.graph.x.device

    def score(trees: EgoTrees) -> float:
        return accuracy(network, task, task.prompts(EgoTrees(*(x.to(device) for x in trees))), WINDOWS[window])

    trees = EgoTrees(*(x.cpu() for x in evaluation_trees(task, "test")))
    return linkage_reliance(score, trees, torch.Generator().manual_seed(seed))


class _Supply:
    """Batches of training prompts without end; every node once before any comes again, with new trees each time."""

    def __init__(self, task: Task, batch: int, generator: torch.Generator) -> None:
        self._task, self._batch, self._generator = task, batch, generator
        self._prompts: dict[str, Tensor] = {}
        self._at = 0

    def next(self) -> dict[str, Tensor]:
        """The next batch."""
        if not self._prompts or self._at + self._batch > len(self._prompts["y"]):
            nodes = self._task.centres["train"]
            # Enough nodes at a time that sampling costs little, and that there is at least one batch.
            rounds = max(1, -(-8 * self._batch // len(nodes)))
            orders = [torch.randperm(len(nodes), generator=self._generator, device=nodes.device) for _ in range(rounds)]
            self._prompts = self._task.prompts(self._task.trees(nodes[torch.cat(orders)], self._generator))
            self._at = 0
        part = slice(self._at, self._at + self._batch)
        self._at += self._batch
        return {name: x[part] for name, x in self._prompts.items()}


def _half(device: str) -> torch.autocast:
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")


if __name__ == "__main__":
    raise SystemExit(main())
