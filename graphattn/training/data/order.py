"""An order of the training examples that survives resumption."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from graphattn.errors import ConfigError

__all__ = ["EpochBatches", "EpochSampler", "WholeSplit", "epoch_sampler", "run_seed", "whole_split"]


class EpochSampler(DistributedSampler):
    """A shuffle that is a function of seed and epoch, and the generator from which loader workers get their seeds."""

    def __init__(self, dataset: Any, *, seed: int, epoch: int, num_replicas: int, rank: int) -> None:
        self.generator = torch.Generator()
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        super().set_epoch(epoch)
        self.generator.manual_seed(self.seed + epoch)


class EpochBatches(EpochSampler):
    """The same order in lists of ``batch_size`` numbers, for data that are taken many rows at a time."""

    batch_size = 1

    def __iter__(self) -> Any:
        numbers = list(super().__iter__())
        return (numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size))

    def __len__(self) -> int:
        return -(-super().__len__() // self.batch_size)


def epoch_sampler(dataset: Any, seed: int | None, trainer: Any, kind: type[EpochSampler] = EpochSampler) -> Any:
    """The order of a data set in a run.

    Args:
        dataset: Anything with a length.
        seed: Seed of the order; ``None``: the run's.
        trainer: The trainer, or ``None`` outside one.
        kind: The sampler's class.
    """
    return kind(
        dataset,
        seed=run_seed() if seed is None else seed,
        # Loader workers start before Lightning announces the epoch, so a resumed run must know it here. Its
        # current_epoch is still the one of the checkpoint; this is the number that will be announced.
        epoch=trainer.fit_loop.epoch_progress.current.processed if trainer else 0,
        **_share(trainer),
    )


class WholeSplit(DistributedSampler):
    """A split in its own order, each example in exactly one process, so that figures are exact.

    Torch's own sampler repeats examples until all processes have the same number.
    """

    def __init__(self, dataset: Any, *, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        if len(dataset) < num_replicas:
            raise ConfigError(
                f"a split of {len(dataset)} examples cannot be shared by {num_replicas} processes; "
                f"use at most --trainer.devices={max(1, len(dataset))}"
            )
        self.mine = range(rank, len(dataset), num_replicas)

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self.mine)


def whole_split(dataset: Any, trainer: Any) -> WholeSplit:
    """The sampler of an evaluation.

    Args:
        dataset: Anything with a length.
        trainer: The trainer, or ``None`` outside one.
    """
    return WholeSplit(dataset, **_share(trainer))


def _share(trainer: Any) -> dict[str, int]:
    """Which part of the examples this process takes: outside a trainer, all."""
    processes, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    return {"num_replicas": processes, "rank": rank}


def run_seed() -> int:
    """The run's seed (``seed_everything``)."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
