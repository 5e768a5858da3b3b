"""Batches of prompts about the nodes of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from graphattn.errors import ArgumentError, ConfigError
from graphattn.optional import require
from graphattn.training.data.order import epoch_sampler, run_seed, whole_split
from graphattn_datasets.text_graphs import (
    TEMPLATES,
    TEXT_GRAPHS,
    PromptSet,
    PromptWriter,
    TextGraph,
    Tokens,
    hugging_face_tokens,
    load_text_graph,
    split_links,
    word_tokens,
)

__all__ = ["PromptDataModule"]

_SPLITS = ("train", "val", "test")


class PromptDataModule(LightningDataModule):
    """Batches of prompts, ``dict``s of tensors that :class:`graphattn_datasets.text_graphs.PromptWriter` lists.

    Trees are sampled anew in each epoch of training, and once for evaluation; batches are made on the training device,
    in this process. After :meth:`setup` the module also tells ``graph`` (features ``graph.x``, classes), ``tokens``
    (the vocabulary) and ``writer`` (``writer.label_tokens``: the token of each class).

    Args:
        name: ``"cane_cora"``; ``"cane_hepth"``, whose prompts are about pairs of papers: is there a link, no or yes; or
            one graph with masks of ``graphattn list datasets`` (``"squirrel_filtered"``), whose nodes have features and
            no text.
        root: Where files are; ``None``: the data set's own rule.
        fan_out: Most children of a vertex, for each depth.
        template: A name of :data:`graphattn_datasets.text_graphs.TEMPLATES`; ``None``: ``"link"`` for pairs, else
            ``"connected"``.
        text_tokens: How many tokens of its text a vertex of each depth brings.
        tokenizer: Name or folder of a tokenizer of transformers; ``None``: a vocabulary of words, for models that are
            trained from scratch, in which each class is one token.
        vocabulary: Most words of that vocabulary.
        batch_size: Prompts in a training batch.
        eval_batch_size: Prompts in a validation or test batch; ``None``: as in training.
        side: Where padding goes.
        length: Tokens of a prompt; ``None``: those of the longest of a batch.
        split: Seed of the split, or the number of an official one.
        seed: Seed of the order and of the sampled trees; ``None``: the run's (``seed_everything``).
        options: Further arguments of the data set.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        fan_out: Sequence[int] = (8, 8),
        template: str | None = None,
        text_tokens: Sequence[int] = (0,),
        tokenizer: str | None = None,
        vocabulary: int = 5000,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        side: Literal["left", "right"] = "right",
        length: int | None = None,
        split: int = 0,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size or batch_size)):
            if value < 1:
                raise ArgumentError(f"{argument} must be at least 1, got {value}")
        self.name, self.root, self.split, self.options = name, root, split, dict(options or {})
        self.fan_out, self.template, self.text_tokens = tuple(fan_out), template, tuple(text_tokens)
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.side, self.length, self.seed = side, length, seed
        self.graph: TextGraph | None = None
        self.tokens: Tokens | None = None
        self.writer: PromptWriter | None = None
        self.sets: dict[str, PromptSet] = {}

    def prepare_data(self) -> None:
        """Download and process in one process of each machine."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load the graph, split it and tokenise its words."""
        if self.sets:
            return
        graph, parts = self._load()
        answers = graph.classes or ("no", "yes")
        template = TEMPLATES[self.template or ("connected" if graph.classes else "link")]
        texts = graph.texts if any(self.text_tokens) else []
        if self.tokenizer is None:
            words = [template.start, *template.before, template.question, template.between, template.ask]
            tokens = word_tokens([*words * (len(texts) + 1), *texts], answers, self.vocabulary)
        else:
            transformers = require("transformers", extra="hf", purpose="a tokenizer by name")
            tokens = hugging_face_tokens(transformers.AutoTokenizer.from_pretrained(self.tokenizer))
        self.graph, self.tokens = graph, tokens
        self.writer = PromptWriter(template, answers, tokens, texts, self.text_tokens)
        seed = run_seed() if self.seed is None else self.seed
        options: dict[str, Any] = {"seed": seed, "side": self.side, "length": self.length}
        self.sets = {
            key: PromptSet(graph, self.writer, centres, y, self.fan_out, **options)
            for key, (centres, y) in parts.items()
        }

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, in an order and with trees that seed and epoch alone decide."""
        prompts = self._on_device("train")
        sampler = epoch_sampler(prompts, self.seed, self.trainer)

        def collate(numbers: list[int]) -> Any:
            return prompts.batch(numbers, sampler.epoch)

        order: Any = range(len(prompts))
        return DataLoader(order, self.batch_size, sampler=sampler, collate_fn=collate, generator=sampler.generator)

    def val_dataloader(self) -> DataLoader:
        """The validation split in its own order."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        """The test split in its own order."""
        return self._evaluation("test")

    predict_dataloader = test_dataloader

    def _evaluation(self, split: str) -> DataLoader:
        prompts = self._on_device(split)
        order: Any = range(len(prompts))
        sampler, generator = whole_split(prompts, self.trainer), torch.Generator().manual_seed(0)
        return DataLoader(
            order, self.eval_batch_size, sampler=sampler, collate_fn=prompts.__getitem__, generator=generator
        )

    def _on_device(self, split: str) -> PromptSet:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        prompts = self.sets[split]
        if prompts.graph.col.device != device:
            assert self.graph is not None
            graph = prompts.graph.to(device)
            for other in self.sets.values():
                other.graph, other.writer = graph, other.writer.to(device)
                other.centres, other.y = other.centres.to(device), other.y.to(device)
        return prompts

    def _load(self) -> tuple[TextGraph, dict[str, Any]]:
        if self.name in TEXT_GRAPHS:
            graph = load_text_graph(self.name, self.root, seed=self.split, **self.options)
        else:
            from graphattn_datasets import load_dataset

            numbered = {"split_index": self.split} if self.split else {}  # 0: the first or only one, unasked
            data = load_dataset(self.name, root=self.root, **{**numbered, **self.options})[0]
            graph = TextGraph.from_data(data, name=self.name)
        if not graph.classes:
            return split_links(graph, seed=self.split)
        if graph.split is None:
            raise ConfigError(f"PromptDataModule needs a graph with masks; {self.name!r} has none")
        nodes = {key: (graph.split == number).nonzero().flatten() for number, key in enumerate(_SPLITS)}
        return graph, {key: (node, graph.y[node]) for key, node in nodes.items()}
