"""Prompts about the nodes, or pairs of nodes, of one graph: trees are sampled when a batch is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn_datasets.text_graphs.graphs import TextGraph
from graphattn_datasets.text_graphs.prompts import PromptWriter
from graphattn_datasets.text_graphs.trees import join_trees, sample_trees

__all__ = ["PromptSet"]


class PromptSet:
    """Prompts by number. The same numbers in the same epoch give the same batch, on one kind of device.

    Args:
        graph: The graph, on the device where batches are made.
        writer: Is moved to that device.
        centres: int64 ``[P]`` nodes, or ``[2, P]`` pairs. Of a pair, neither end is sampled as a neighbour of the
            other, so that a link that is in the graph does not give itself away.
        y: int64 ``[P]`` the class of each.
        fan_out: Most children of a vertex, for each depth (published: [8, 8]).
        seed: Of the samples.
        side: Where padding goes.
        length: Tokens of a prompt; default: those of the longest of a batch.
        answer: Write the answers.
    """

    def __init__(
        self,
        graph: TextGraph,
        writer: PromptWriter,
        centres: Tensor,
        y: Tensor,
        fan_out: Sequence[int] = (8, 8),
        *,
        seed: int = 0,
        side: Literal["left", "right"] = "right",
        length: int | None = None,
        answer: bool = True,
    ) -> None:
        if centres.dim() not in (1, 2) or centres.shape[-1] != y.shape[0] or (centres.dim() == 2 and len(centres) != 2):
            raise ArgumentError(f"centres must be [{y.shape[0]}] or [2, {y.shape[0]}], got {list(centres.shape)}")
        device = graph.col.device
        self.graph, self.writer, self.fan_out, self.seed = graph, writer.to(device), tuple(fan_out), seed
        self.centres, self.y = centres.to(device), y.to(device)
        self._options: dict[str, Any] = {"side": side, "length": length, "answer": answer}

    @property
    def depth(self) -> int | None:
        """Depth of the tree of each prompt, for :func:`graphattn.patterns.graph_window`; ``None`` for pairs."""
        return len(self.fan_out) if self.centres.dim() == 1 else None

    def __len__(self) -> int:
        return self.y.shape[0]

    def __getitem__(self, numbers: Tensor | Sequence[int]) -> dict[str, Tensor]:
        """A batch with the trees that evaluation sees."""
        return self.batch(numbers)

    def batch(self, numbers: Tensor | Sequence[int], epoch: int = -1) -> dict[str, Tensor]:
        """See :class:`PromptWriter` for what is in it.

        Args:
            numbers: Which prompts.
            epoch: Other epochs have other trees; -1: those of evaluation.
        """
        index = torch.as_tensor(numbers, device=self.y.device)
        generator = torch.Generator(index.device)
        first = int(numbers[0]) if len(numbers) else 0
        generator.manual_seed(((self.seed * 1_000_003 + epoch + 1) * 1_000_003 + first) % 2**63)
        graph = self.graph
        if self.centres.dim() == 1:
            trees = sample_trees(graph.rowptr, graph.col, self.centres[index], self.fan_out, generator)
        else:
            one, other = self.centres[:, index]
            trees = join_trees(
                sample_trees(graph.rowptr, graph.col, one, self.fan_out, generator, without=other),
                sample_trees(graph.rowptr, graph.col, other, self.fan_out, generator, without=one),
            )
        return self.writer(trees, self.y[index], **self._options)

    def batches(self, batch_size: int, epoch: int | None = None) -> Iterator[dict[str, Tensor]]:
        """All prompts in batches: shuffled, with the trees of the epoch; without an epoch in order, for evaluation."""
        if epoch is None:
            order = torch.arange(len(self))
        else:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        for numbers in order.split(batch_size):
            yield self.batch(numbers, -1 if epoch is None else epoch)
