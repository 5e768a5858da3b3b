"""Part of a comparison, in a process of its own: train one network, and test it in every way.

    python -m experiments.ssa.work --task pattern --out runs/ssa-pattern --seed 0 --keep 0.25 --scheme uniform

Called by experiments.ssa.compare. A part that is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.ssa.build import data_of, load_config, task_of, trainer_of

__all__ = ["ENSEMBLES", "KEEPS", "Variant", "fork_of", "main", "part_path"]

KEEPS = (1.0, 0.5, 0.25, 0.125)
ENSEMBLES = (1, 2, 4, 8, 16)
PASSES = max(ENSEMBLES)
DENSE_SHARE = 0.1  # of the epochs, at the end, of the fork that is fine-tuned: whole epochs, and at least one


class Variant(NamedTuple):
    """How a network is trained."""

    keep: float
    scheme: str = "uniform"

    @property
    def name(self) -> str:
        """``dense``, ``ssa-0.25``, ``ssa-0.25-local``."""
        return "dense" if self.keep == 1.0 else f"ssa-{self.keep:g}" + ("-local" if self.scheme == "local" else "")


def fork_of(epochs: int) -> int:
    """Epochs after which the fork goes on densely."""
    return max(1, min(epochs - 1, math.ceil((1 - DENSE_SHARE) * epochs)))


def part_path(out: Path, variant: Variant, seed: int) -> Path:
    """Where the figures of a network are."""
    return out / variant.name / f"seed_{seed}.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, write; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--keep", required=True, type=float)
    parser.add_argument("--scheme", default="uniform")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    variant = Variant(options.keep, options.scheme)
    path = part_path(options.out, variant, options.seed)
    if path.is_file():
        return 0
    config = load_config(options.task, quick=options.quick, epochs=options.epochs)
    found = {**work(config, variant, options.seed), "quick": options.quick}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return 0


def work(config: dict[str, Any], variant: Variant, seed: int) -> dict[str, Any]:
    """Train one network as the variant says, and a fork of it that is dense at the end; test both."""
    data = data_of(config, seed)
    data.setup()
    epochs = config["trainer"]["max_epochs"]
    fork = fork_of(epochs)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        kept = [{"keep": variant.keep, "scheme": variant.scheme, "fraction": 1.0}]
        task, losses = _fit(config, data, kept, seed, Path(folder), fork if variant.keep < 1.0 else None)
        found: dict[str, Any] = {"variant": variant.name, "keep": variant.keep, "seed": seed, "epochs": epochs}
        found |= {"metric": task.metric, "mode": task.mode, "seconds": time.perf_counter() - begin, "losses": losses}
        found["data"] = config["data"]["init_args"]["name"]
        found["parameters"] = sum(parameter.numel() for parameter in task.model.parameters())
        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        limit = config["trainer"].get("limit_test_batches")
        found["dense"] = test_dense(task, data, limit)
        found["ensembles"] = {
            f"{keep:g}": test_ensembles(task, data, limit, keep, variant.scheme, seed)
            for keep in (KEEPS[1:] if variant.keep == 1.0 else (variant.keep,))
        }
        checkpoint = Path(folder) / "fork.ckpt"
        if checkpoint.is_file():
            share = fork / epochs
            phases = [{**kept[0], "fraction": share}, {"keep": 1.0, "fraction": 1.0 - share}]
            tuned, _ = _fit(config, data, phases, seed, None, None, checkpoint)
            found["tuned"] = test_dense(tuned, data, limit)
    found["seconds_in_all"] = time.perf_counter() - begin
    return found


def _fit(
    config: dict[str, Any],
    data: Any,
    phases: list[dict[str, Any]],
    seed: int,
    folder: Path | None,
    fork: int | None,
    checkpoint: Path | None = None,
) -> tuple[Any, list[float]]:
    """A trained task, and its training loss after each epoch; ``fork``: leave a checkpoint after so many epochs."""
    from lightning.pytorch import seed_everything
    from lightning.pytorch.callbacks import LambdaCallback

    from experiments.ssa.build import ForkCheckpoint
    from graphattn.training.callbacks import EpochSeed
    from graphattn.training.subsampling import SSAPhases

    seed_everything(seed, verbose=False)
    task, losses = task_of(config), []

    def note(trainer: Any, module: Any) -> None:
        losses.append(float(trainer.callback_metrics["train/loss"]))
        print(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: loss {losses[-1]:.4f}", flush=True)

    callbacks: list[Any] = [EpochSeed(seed), SSAPhases(phases), LambdaCallback(on_train_epoch_end=note)]
    if folder is not None and fork is not None:
        callbacks.append(ForkCheckpoint(folder, fork))
    trainer = trainer_of(config, callbacks)
    trainer.fit(task, datamodule=data, ckpt_path=None if checkpoint is None else str(checkpoint))
    return task.to("cuda" if torch.cuda.is_available() else "cpu").eval(), losses


def predictions(task: Any, data: Any, limit: int | None) -> tuple[Tensor, Tensor]:
    """Scores ``[rows, C]`` in float32 of all test examples, and their targets."""
    found = []
    half = torch.autocast("cuda", torch.bfloat16, enabled=task.device.type == "cuda" and _is_half(task))
    with torch.no_grad(), half:
        for number, batch in enumerate(data.test_dataloader()):
            if limit is not None and number >= limit:
                break
            batch = task.transfer_batch_to_device(batch, task.device, 0)
            found.append(task.rows(task(batch).float(), batch, "test"))
    scores, targets = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(targets)


def _is_half(task: Any) -> bool:
    return task._trainer is not None and "bf16" in str(task.trainer.precision)


def test_dense(task: Any, data: Any, limit: int | None) -> dict[str, float]:
    """Metric and cross-entropy on whole graphs."""
    return score(task, *predictions(task, data, limit))


def test_ensembles(task: Any, data: Any, limit: int | None, keep: float, scheme: str, seed: int) -> dict[str, Any]:
    """Metric and cross-entropy of averages of K passes, each the mean over as many groups of K as 16 passes hold."""
    from graphattn.mechanisms import sampling
    from graphattn.nn import SelfEnsemble

    passes = []
    generator = torch.Generator(task.device).manual_seed(1000 + seed)
    with sampling(task.model, True, generator) as modules:
        before = [(module.keep, module.scheme) for module in modules]
        for module in modules:
            module.set_scheme(keep, scheme)
        for _ in range(PASSES):
            scores, targets = predictions(task, data, limit)
            passes.append(scores.log_softmax(-1))
        for module, (was, how) in zip(modules, before, strict=True):
            module.set_scheme(was, how)
    found = {}
    for size in ENSEMBLES:
        groups = []
        for first in range(0, PASSES, size):
            mean = SelfEnsemble("softmax")
            for scores in passes[first : first + size]:
                mean.add(scores)
            groups.append(score(task, mean.result(), targets))
        found[str(size)] = {key: sum(group[key] for group in groups) / len(groups) for key in groups[0]}
    return found


def score(task: Any, scores: Tensor, targets: Tensor) -> dict[str, float]:
    """The task's metric, and the cross-entropy in nats."""
    metric = task.get_submodule("test_metrics")[task.metric]
    metric.reset()
    metric.update(scores, targets)
    return {task.metric: float(metric.compute()), "nll": float(F.cross_entropy(scores, targets))}


if __name__ == "__main__":
    sys.exit(main())
