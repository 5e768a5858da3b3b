"""Trees and words to batches of prompts, in a few tensor operations for the whole batch, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn_datasets.text_graphs.tokens import Tokens
from graphattn_datasets.text_graphs.trees import EgoTrees

__all__ = ["TEMPLATES", "PromptWriter", "Template"]


@dataclass(frozen=True)
class Template:
    """The words around the nodes.

    A prompt is: ``start``; for each vertex in pre-order the words before it, its node token, and the beginning of its
    text; ``question``; a copy of the centre (of both centres, ``between`` them); ``ask``; the answer.
    """

    start: str
    before: tuple[str, ...]
    """For each depth, the last for all deeper ones."""
    question: str
    ask: str
    between: str = " and"


TEMPLATES: dict[str, Template] = {
    # The wording of the released prompts could not be read; their order of tasks, nodes and question is kept.
    "connected": Template(
        "We need to classify the centre node of a graph by what it is connected to.\n",
        ("Node", "\nNode", " is connected to"),
        "\nQuestion: which class has node",
        "? Answer:",
    ),
    "paper": Template(
        "A citation graph follows. Classify the first paper.\nPaper",
        ("", "\ncites", " that cites"),
        "\nThe topic of",
        " is",
    ),
    "bare": Template("", ("",), "?", ":"),
    "link": Template(
        "Two papers and what they cite.\n", ("\nPaper", " cites", " that cites"), "\nDoes", " cite? Answer:"
    ),
}


class PromptWriter:
    """Writes a batch of prompts.

    All words are tokenised once, when the writer is made. A batch is a ``dict`` of tensors, with B prompts of T tokens
    about trees of V vertices:

    ==================  ==================================================================================
    ``tokens``          int64 ``[B, T]``
    ``attention_mask``  bool ``[B, T]``: what is no padding
    ``node_of_token``   int64 ``[B, T]``: the vertex that a token stands for, -1 for text; the copies of the centre with
                        which the question is asked are text
    ``node_ids``        int64 ``[B, T]``: the node whose feature row a token stands for, -1 for words; the copies too
    ``parents``         int64 ``[B, V]``: the parent of each vertex, -1 for a root and past the last
    ``nodes``           int64 ``[B, V]``: the node of each vertex, -1 past the last
    ``depths``          int64 ``[B, V]``, -1 past the last
    ``labels``          int64 ``[B, T]``: ``tokens`` where the answer is, else -100 (transformers shifts them itself)
    ``targets``         int64 ``[B, T]``: the same one token earlier, as losses that do not shift want them
    ``positions``       int64 ``[B, T]``: 0, 1, ... from the first token that is no padding (``position_ids``)
    ``answer_at``       int64 ``[B]``: the token whose logits say the first token of the answer
    ``y``               int64 ``[B]``: the class
    ==================  ==================================================================================

    ``graph_window(batch["node_of_token"], batch["parents"], hops, mask=batch["attention_mask"])`` is its graph.

    Args:
        template: The words, or a name of :data:`TEMPLATES`.
        answers: The answer of each class.
        tokens: The vocabulary.
        texts: A text for each node of the graph, or none.
        text_tokens: How many tokens of its text a vertex of each depth brings; the last for all deeper ones.
    """

    def __init__(
        self,
        template: Template | str,
        answers: Sequence[str],
        tokens: Tokens,
        texts: Sequence[str] = (),
        text_tokens: Sequence[int] = (0,),
    ) -> None:
        if isinstance(template, str):
            if template not in TEMPLATES:
                raise ArgumentError(f"template must be a Template or one of {sorted(TEMPLATES)}, got {template!r}")
            template = TEMPLATES[template]
        if any(text_tokens) and not texts:
            raise ArgumentError(f"text_tokens={list(text_tokens)} needs texts, got none")
        self.template, self.answers, self.tokens = template, tuple(answers), tokens
        begin = [] if tokens.begin is None else [tokens.begin]
        end = [] if tokens.end is None else [tokens.end]
        encode = tokens.encode
        answer_tokens = [encode(f" {answer}") for answer in answers]
        if not all(answer_tokens):
            raise ArgumentError(f"answers must have a token each, got {list(answers)}")
        words = [encode(piece) for piece in (template.question, template.between, template.ask)]
        pieces = [begin + encode(template.start), [tokens.node], *words, *map(encode, template.before)]
        self._answer = len(pieces)
        pieces += [answer + end for answer in answer_tokens]
        self._text = len(pieces)
        if any(text_tokens):
            pieces += [encode(f" {text}")[: max(text_tokens)] for text in texts]
        self._first = torch.tensor([0, *map(len, pieces)]).cumsum(0)
        self._numbers = torch.tensor([number for piece in pieces for number in piece], dtype=torch.int64)
        self._most = torch.tensor(list(text_tokens))
        self._first_answers = torch.tensor([answer[0] for answer in answer_tokens])

    @property
    def label_tokens(self) -> Tensor:
        """int64 ``[C]``: the first token of each answer; a class is told by its logit.

        Raises:
            ArgumentError: If two answers begin alike.
        """
        if len(self._first_answers.unique()) != len(self.answers):
            raise ArgumentError(f"answers must differ in their first token to be told by it, got {list(self.answers)}")
        return self._first_answers

    def to(self, device: torch.device | str) -> PromptWriter:
        """The writer, writing on a device from now on."""
        for name in ("_first", "_numbers", "_most", "_first_answers"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __call__(
        self,
        trees: EgoTrees,
        y: Tensor,
        *,
        answer: bool = True,
        side: Literal["left", "right"] = "right",
        length: int | None = None,
    ) -> dict[str, Tensor]:
        """Write prompts.

        Args:
            trees: One tree each, or one forest: the question names all roots.
            y: int64 ``[B]`` classes (with ``answer=False`` only handed on).
            answer: Write the answers: off for generation, where ``labels`` are all -100.
            side: Where padding goes.
            length: Tokens of a prompt, padding included; default: those of the longest.

        Raises:
            ArgumentError: If a prompt is longer than ``length``.
        """
        if side not in ("left", "right"):
            raise ArgumentError(f"side must be 'left' or 'right', got {side!r}")
        piece, size, vertex, node = self._outline(trees, y, answer)
        total = size.sum(1)
        longest = int(total.max())
        if length is not None and longest > length:
            raise ArgumentError(f"length must be {longest} or more for these prompts, got {length}")
        width = longest if length is None else length
        offset = width - total if side == "left" else torch.zeros_like(total)
        at = torch.arange(width, device=y.device)
        mask = (at >= offset.unsqueeze(1)) & (at < (offset + total).unsqueeze(1))

        begin = (size.flatten().cumsum(0) - size.flatten()).view(size.shape)
        emission = torch.repeat_interleave(size.flatten())
        inside = torch.arange(emission.shape[0], device=y.device) - begin.flatten()[emission]
        number = self._numbers[self._first[piece.flatten()[emission]] + inside]

        def spread(value: Tensor, fill: int) -> Tensor:
            out = torch.full(mask.shape, fill, dtype=torch.int64, device=y.device)
            out[mask] = value  # row by row, as the emissions are
            return out

        tokens = spread(number, self.tokens.pad)
        answered = torch.zeros_like(size, dtype=torch.bool)
        answered[:, -1] = answer
        is_answer = spread(answered.flatten()[emission].long(), 0).bool()
        labels = torch.where(is_answer, tokens, -100)
        return {
            "tokens": tokens,
            "attention_mask": mask,
            "node_of_token": spread(vertex.flatten()[emission], -1),
            "node_ids": spread(node.flatten()[emission], -1),
            "parents": trees.parent,
            "nodes": trees.node,
            "depths": trees.depth,
            "labels": labels,
            "targets": torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), -100)], 1),
            "positions": (at - offset.unsqueeze(1)).clamp(min=0),
            "answer_at": offset + total - size[:, -1] - 1,
            "y": y,
        }

    def _outline(self, trees: EgoTrees, y: Tensor, answer: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each piece of each prompt, ``[B, pieces]``: which it is, its tokens, its vertex, and its node."""
        (batch, vertices), device = trees.node.shape, y.device
        there = trees.node >= 0
        before = 5 + trees.depth.clamp(0, len(self.template.before) - 1)
        text = self._text + trees.node.clamp(min=0)
        most = self._most[trees.depth.clamp(0, len(self._most) - 1)]
        has_text = len(self._first) - 1 > self._text
        text = text if has_text else torch.zeros_like(text)
        node_piece = torch.ones_like(before)
        body = torch.stack([before, node_piece, text], -1)
        size = self._sizes(body)
        size[..., 2] = torch.minimum(size[..., 2], most) if has_text else 0
        size = torch.where(there.unsqueeze(-1), size, 0)
        vertex = torch.full_like(body, -1)
        vertex[..., 1] = torch.arange(vertices, device=device)
        node = torch.full_like(body, -1)
        node[..., 1] = trees.node

        roots = there & (trees.depth == 0)
        count = int(roots.sum(1).max())
        root = roots.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
        centre = trees.node.gather(1, root)
        tail = [2, 1, *(x for _ in range(count - 1) for x in (3, 1)), 4]
        ends = torch.tensor(tail, device=device).expand(batch, -1)
        copies = torch.full_like(ends, -1)
        copies[:, 1::2] = centre
        last = (self._answer + y.clamp(min=0)).unsqueeze(1)
        none = torch.full((batch, 1), -1, device=device)
        start = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        pieces = torch.cat([start, body.flatten(1), ends, last], 1)
        sizes = torch.cat([self._sizes(start), size.flatten(1), self._sizes(ends), self._sizes(last) * answer], 1)
        vertex = torch.cat([none, vertex.flatten(1), torch.full_like(ends, -1), none], 1)
        return pieces, sizes, vertex, torch.cat([none, node.flatten(1), copies, none], 1)

    def _sizes(self, piece: Tensor) -> Tensor:
        return self._first[piece + 1] - self._first[piece]
