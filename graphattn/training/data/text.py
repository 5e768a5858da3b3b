"""Batches of windows of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from graphattn.errors import ConfigError
from graphattn.training.data.common import load
from graphattn.training.data.graphs import GraphDataModule

__all__ = ["TextDataModule"]


class TextDataModule(GraphDataModule):
    """Batches ``{"x": int64 [B, N], "y": int64 [B, N]}`` of a text: characters, and those after them.

    The text is kept on the training device and windows are cut there.

    Args:
        name: ``"tinyshakespeare"`` or ``"python_docs"``.
        root: Where downloads go; ``None``: the data set's own rule.
        context: N, characters of a window.
        stride: Characters from one training window to the next; ``None``: ``context``.
        batch_size: Windows in a training batch.
        eval_batch_size: Windows in a validation or test batch; ``None``: as in training.
        drop_last: Leave out an incomplete last training batch.
        seed: Seed of the order; ``None``: the run's (``seed_everything``).
        options: Further arguments of the data set, ``{"num_characters": 100_000}`` say.
    """

    def __init__(
        self,
        name: str = "tinyshakespeare",
        root: str | None = None,
        context: int = 256,
        stride: int | None = None,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = True,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            name,
            root,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            seed=seed,
            options={"context": context, "stride": stride, **(options or {})},
        )
        self._moved: dict[int, Any] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load the splits."""
        if self.splits is None:
            splits = load(self.name, self.root, None, None, self.options)
            if not hasattr(getattr(splits, "train", None), "characters"):
                raise ConfigError(
                    f"TextDataModule needs a text, and {self.name!r} is none; see graphattn list datasets"
                )
            self.splits = splits

    def _loader(self, dataset: Any, batch_size: int, **kwargs: Any) -> DataLoader:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if id(dataset) not in self._moved:
            self._moved[id(dataset)] = dataset.to(device)
        options = {"generator": torch.Generator().manual_seed(0), **kwargs}
        windows = _Windows(self._moved[id(dataset)])
        return DataLoader(range(len(dataset)), batch_size=batch_size, collate_fn=windows, **options)  # type: ignore[arg-type]


class _Windows:
    """A batch from a list of numbers, on the text's device."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        wanted = torch.tensor(numbers)
        if self.dataset.tokens.is_cuda:
            wanted = wanted.pin_memory()
        return self.dataset[wanted.to(self.dataset.tokens.device, non_blocking=True)]
