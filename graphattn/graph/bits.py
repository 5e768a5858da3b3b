"""Graphs as packed bits: one mask for each head and batch entry, made anew in every step without a list of edges."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.csr import Csr, index_dtype
from graphattn.graph.lists import leading_of
from graphattn.graph.token_graph import TokenGraph
from graphattn_kernels.bits import WORD, unpack
from graphattn_kernels.select_sources import select_bits

__all__ = ["BitGraph", "from_mask"]


class BitGraph(TokenGraph):
    """A graph held as one bit for each pair of tokens. Made by :meth:`TokenGraph.top_k`,
    :meth:`TokenGraph.threshold` and :meth:`TokenGraph.from_mask`.

    On CUDA, attention makes tiles of the bits, and nothing waits for the device. Other operations see edges,
    target-major with ascending sources, that are enumerated at first use.

    Args:
        words: int32 ``[*leading, T, ceil(S / 32)]``: source j is bit ``j % 32`` of word ``j // 32``; unused bits are 0.
        num_sources: S.
        axes: What the leading dimensions are: ``""``, ``"h"``, ``"b"`` or ``"bh"``.
        known_causal: See :attr:`TokenGraph.known_causal`.
    """

    _tensor_fields = (*TokenGraph._tensor_fields, "_words")
    _words: Tensor

    def __init__(self, words: Tensor, num_sources: int, axes: str = "", *, known_causal: bool = False) -> None:
        if not isinstance(words, Tensor) or words.dtype != torch.int32:
            got = words.dtype if isinstance(words, Tensor) else type(words).__name__
            raise ArgumentTypeError(f"words must be an int32 tensor, got {got}")
        leading = leading_of("words", words, axes, 2)
        if words.shape[-1] != -(-num_sources // WORD):
            raise ArgumentError(f"words must hold {num_sources} bits in each row, got {list(words.shape)}")
        super().__init__(
            None,
            num_targets=words.shape[-2],
            num_sources=num_sources,
            leading=leading,
            leading_axes=axes,
            known_causal=known_causal,
        )
        self._words = words.reshape(math.prod(leading), *words.shape[-2:]).contiguous()

    @property
    def words(self) -> Tensor:
        """int32 ``[*leading, T, ceil(S / 32)]``."""
        return self._words.view(*self._leading, *self._words.shape[1:])

    @property
    def flat_words(self) -> Tensor:
        """int32 ``[copies, T, ceil(S / 32)]``."""
        return self._words

    @property
    def has_duplicates(self) -> bool:
        """``False``: a bit is there once."""
        return False

    @property
    def max_edges(self) -> int:
        """An upper bound of :attr:`num_edges` that never enumerates."""
        return self.num_copies * self._num_targets * self._num_sources

    @property
    def device(self) -> torch.device:
        """Where the bits live."""
        return self._words.device

    def to_dense(self) -> Tensor:
        """Boolean ``[..., T, S]``: may the target read the source?"""
        return unpack(self.words, self._num_sources)

    def __or__(self, other: TokenGraph) -> TokenGraph:
        return self._like(self._words | other._words) if self._alike(other) else super().__or__(other)

    def __and__(self, other: TokenGraph) -> TokenGraph:
        return self._like(self._words & other._words) if self._alike(other) else super().__and__(other)

    def __sub__(self, other: TokenGraph) -> TokenGraph:
        return self._like(self._words & ~other._words) if self._alike(other) else super().__sub__(other)

    def sample(self, keep: float, generator: torch.Generator | None = None) -> TokenGraph:
        """Each edge kept with probability ``keep``, independently; nothing waits for the device."""
        if not 0.0 <= keep <= 1.0:
            raise ArgumentError(f"keep must be a probability in 0..1, got {keep}")
        shape = (*self._words.shape[:2], self._num_sources)
        device = self.device if generator is None else generator.device
        drawn = torch.rand(shape, generator=generator, device=device).to(self.device)
        return self._like(self._words & select_bits(-drawn, at=-keep))

    def _alike(self, other: object) -> TypeGuard[BitGraph]:
        return isinstance(other, BitGraph) and self._facts() == other._facts()

    def _facts(self) -> tuple[object, ...]:
        return self._leading, self._leading_axes, self._words.shape, self._num_sources, self.device

    def _like(self, words: Tensor) -> BitGraph:
        return BitGraph(words.view(*self._leading, *words.shape[1:]), self._num_sources, self._leading_axes)

    def _enumerate(self) -> Csr:
        copies, targets, sources = self.num_copies, self._num_targets, self._num_sources
        mask = unpack(self._words, sources)
        copy, _, col = mask.nonzero(as_tuple=True)  # row by row, sources ascending
        count = mask.sum(-1).flatten()
        dtype = index_dtype(copies * targets, copies * sources, col.shape[0])
        rowptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
        return Csr(rowptr.to(dtype), (col + copy * sources).to(dtype), None)

    def __repr__(self) -> str:
        size = f"{self._num_targets}" if self.is_square else f"{self._num_targets} <- {self._num_sources}"
        leading = f", leading={tuple(self._leading)}" if self._leading else ""
        return f"{type(self).__name__}(tokens={size}{leading}, device={str(self.device)!r})"


def from_mask(mask: Tensor, axes: str = "") -> BitGraph:
    """See :meth:`TokenGraph.from_mask`."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentTypeError(f"mask must be a bool tensor [..., T, S], got {got}")
    leading = leading_of("mask", mask, axes, 2)
    words = select_bits(mask.reshape(math.prod(leading), *mask.shape[-2:]), at=0)
    return BitGraph(words.view(*leading, *words.shape[1:]), mask.shape[-1], axes)
