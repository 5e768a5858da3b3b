"""Windows of a text, as numbers of its characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets.info import DatasetInfo
from graphattn_datasets.paths import cache_root
from graphattn_datasets.text.files import read_python_docs, read_tinyshakespeare

__all__ = ["TextSet", "make"]

SHARES = (0.9, 0.05, 0.05)


class TextSet(Dataset):
    """Windows of ``context`` characters and, for each, the character after it.

    An item, and what a list of numbers gives (``__getitems__``), is a dict of ``x`` and ``y``, int64
    ``[..., context]``: ``y`` is ``x`` moved on by one. Windows begin every ``stride`` characters; one that would reach
    over the end begins earlier, and its first ``y`` that an earlier window has already are -100 (no target), so that
    with ``stride = context`` each character is predicted exactly once.

    Args:
        tokens: Integer ``[L]``, the numbers of the characters.
        characters: The character of each number.
        context: Characters of a window.
        stride: From one window to the next; ``None``: ``context``.
        transform: Applied to each item or batch.

    Raises:
        ArgumentError: If the text is shorter than a window, or a size is not positive.
    """

    info: DatasetInfo
    exactness = ""

    def __init__(
        self,
        tokens: Tensor,
        characters: Sequence[str],
        context: int,
        stride: int | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.tokens, self.characters, self.context = tokens, tuple(characters), context
        self.stride, self.transform = context if stride is None else stride, transform
        if context < 1 or self.stride < 1 or self.stride > context:
            raise ArgumentError(f"context must be positive and stride 1 to context, got {context} and {self.stride}")
        if tokens.dim() != 1 or tokens.shape[0] <= context:
            raise ArgumentError(f"tokens must be [L] with L > context = {context}, got {list(tokens.shape)}")

    def __len__(self) -> int:
        return -(-(self.tokens.shape[0] - 1 - self.context) // self.stride) + 1

    def __getitem__(self, index: int | Tensor | list[int]) -> dict[str, Tensor]:
        number = torch.as_tensor(index, device=self.tokens.device)
        wanted = number * self.stride
        start = wanted.clamp(max=self.tokens.shape[0] - 1 - self.context)
        place = torch.arange(self.context + 1, device=start.device)
        rows = self.tokens[start.unsqueeze(-1) + place].long()
        # Of the last window: what the one before it has predicted already.
        seen = place[:-1] < (wanted - start + self.context - self.stride).unsqueeze(-1)
        last = (wanted > start).unsqueeze(-1)
        item = {"x": rows[..., :-1], "y": rows[..., 1:].masked_fill(seen & last, -100)}
        return item if self.transform is None else self.transform(item)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return self[torch.tensor(indices)]

    def to(self, device: torch.device | str) -> TextSet:
        """The same windows, made on a device."""
        moved = TextSet(self.tokens.to(device), self.characters, self.context, self.stride, self.transform)
        moved.exactness = self.exactness
        if hasattr(self, "info"):
            moved.info = self.info
        return moved

    def text(self, tokens: Tensor) -> str:
        """Numbers ``[N]`` back to characters."""
        return "".join(self.characters[n] for n in tokens.tolist())

    def __repr__(self) -> str:
        name = self.info.name if hasattr(self, "info") else type(self).__name__
        return f"{name}({len(self)} windows of {self.context} characters, {len(self.characters)} different ones)"


def make(
    info: DatasetInfo,
    root: str | None,
    split: str | None,
    *,
    transform: Any,
    pre_transform: Any,
    context: int = 256,
    stride: int | None = None,
    num_characters: int | None = None,
) -> TextSet:
    """One part of a text, for :func:`graphattn_datasets.load_dataset`.

    Args:
        info: Which.
        root: Where downloads go; default ``$GRAPHATTN_CACHE/text/<name>``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        transform: Applied at every access.
        pre_transform: Not for text.
        context: Characters of a window.
        stride: From one training window to the next; default: ``context``. Validation and test windows do not overlap.
        num_characters: Only so many characters of the text, from its beginning.

    Raises:
        ArgumentError: If there is a ``pre_transform``, or a part is shorter than a window.
    """
    if pre_transform is not None:
        raise ArgumentError(f"pre_transform must be None for the text {info.name!r}, got {pre_transform!r}")
    folder = Path(cache_root(root, f"text/{info.name}"))
    text = read_python_docs(folder) if info.name == "python_docs" else read_tinyshakespeare(folder)
    text = text if num_characters is None else text[:num_characters]
    characters = sorted(set(text))
    if len(characters) > 256:
        raise DataError(f"{info.name} must have 256 different characters at most, got {len(characters)}")
    number = {character: n for n, character in enumerate(characters)}
    tokens = torch.tensor([number[character] for character in text], dtype=torch.uint8)
    first, second = (round(len(text) * share) for share in (SHARES[0], SHARES[0] + SHARES[1]))
    part = {"train": tokens[:first], "val": tokens[first:second], "test": tokens[second:]}[str(split)]
    dataset = TextSet(part, characters, context, stride if split == "train" else None, transform)
    dataset.exactness = info.exactness
    return dataset
