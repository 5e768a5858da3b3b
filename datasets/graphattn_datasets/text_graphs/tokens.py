"""Texts to token numbers: what any tokenizer needs for prompts with node tokens, and a small tokenizer of words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn.errors import ArgumentError

__all__ = ["NODE", "Tokens", "align_nodes", "hugging_face_tokens", "word_tokens"]

NODE = "<|node|>"
"""The placeholder of a node in a text."""


class Tokens(NamedTuple):
    """A vocabulary with a node token: all that :class:`PromptWriter` asks of a tokenizer."""

    encode: Callable[[str], list[int]]
    """A text to numbers, without tokens of beginning and end."""
    decode: Callable[[list[int]], str]
    size: int
    """Numbers that there are, the node token included."""
    node: int
    pad: int
    begin: int | None = None
    end: int | None = None


def hugging_face_tokens(tokenizer: Any, node: str = NODE) -> Tokens:
    """A tokenizer of transformers, fast or slow, to which the node token is added where it lacks it.

    A model has to grow its embedding: ``model.resize_token_embeddings(len(tokenizer))``. Added tokens are cut out of a
    text before anything else, so the pieces between node tokens are tokenised as in the whole text.

    Args:
        tokenizer: ``PreTrainedTokenizerBase``.
        node: How the node token is written.
    """
    tokenizer.add_tokens([node], special_tokens=True)
    number = tokenizer.convert_tokens_to_ids(node)
    pad = next(
        (x for x in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) if x is not None), 0
    )
    return Tokens(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        lambda numbers: tokenizer.decode(numbers, skip_special_tokens=True),
        *(len(tokenizer), number, pad, tokenizer.bos_token_id, tokenizer.eos_token_id),
    )


def word_tokens(texts: Iterable[str], phrases: Sequence[str] = (), most: int | None = None) -> Tokens:
    """A vocabulary of the words and signs of some texts, for models that are trained from scratch.

    Args:
        texts: Where the words are taken from.
        phrases: What is one token, whatever is in it: the names of classes.
        most: Keep the most frequent so many of the words; others become one unknown word.
    """
    special = ["<pad>", "<begin>", "<end>", "<unknown>", NODE]
    whole = sorted({*phrases, NODE}, key=lambda phrase: (-len(phrase), phrase))
    pattern = re.compile("|".join([*map(re.escape, whole), r"\w+", r"[^\w\s]"]))
    counts: dict[str, int] = {}
    for text in texts:
        for word in pattern.findall(text):
            counts[word] = counts.get(word, 0) + 1
    words = sorted(
        (word for word in counts if word not in {*special, *phrases}), key=lambda word: (-counts[word], word)
    )
    names = [*special, *dict.fromkeys(phrases), *words[:most]]
    number = {name: at for at, name in enumerate(names)}
    unknown = number["<unknown>"]
    return Tokens(
        lambda text: [number.get(word, unknown) for word in pattern.findall(text)],
        lambda numbers: " ".join(names[at] for at in numbers if at > unknown),
        *(len(names), number[NODE], 0, number["<begin>"], number["<end>"]),
    )


def align_nodes(tokens: Tensor, node: int, count: Tensor) -> tuple[Tensor, Tensor]:
    """Which vertex each token stands for, in prompts that somebody else has written and tokenised.

    Args:
        tokens: Integer ``[B, T]``.
        node: Number of the node token.
        count: Integer ``[B]``: vertices of each prompt. They stand in order; node tokens after the last are copies with
            which the question is asked, and text to the window.

    Returns:
        int64 ``[B, T]``: the vertex that a token stands for, -1 for text and copies; and how many copies there are,
        ``[B]``.

    Raises:
        ArgumentError: If a prompt has fewer node tokens than vertices (it was cut, or the tokenizer does not know the
            token).
    """
    there = tokens == node
    copies = there.sum(1) - count
    if bool((copies < 0).any()):
        row = int((copies < 0).nonzero()[0])
        raise ArgumentError(
            f"prompt {row} must have a node token for each of its {int(count[row])} vertices, got "
            f"{int(there[row].sum())}: was it cut, or is {node} not the number of the node token?"
        )
    vertex = there.cumsum(1) - 1
    return torch.where(there & (vertex < count.unsqueeze(1)), vertex, -1), copies
