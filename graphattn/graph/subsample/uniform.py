"""Uniform subsets: the same sources for all targets, or each pair by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph.bits import BitGraph
from graphattn.graph.lists import ListGraph
from graphattn.graph.subsample.chance import Device, Generator, count_kept, draw
from graphattn_kernels.lists import SourceLists
from graphattn_kernels.select_sources import select_bits, select_lists

__all__ = ["uniform_graph", "uniform_pairs", "uniform_sources"]


def uniform_sources(
    num_tokens: int,
    keep: float,
    *,
    batch: Sequence[int] = (),
    generator: Generator = None,
    always: Tensor | None = None,
    minimum: int = 1,
    device: Device = None,
) -> Tensor:
    """A uniform subset of the tokens, of fixed size: the sources that all targets read (unbiased SSA).

    .. math:: I \\sim \\text{uniform over the } m\\text{-subsets of } \\{0, \\dots, N - 1\\}

    Args:
        num_tokens: N.
        keep: Share of the tokens that is kept, in 0..1.
        batch: Leading dimensions, each entry with a subset of its own.
        generator: Source of randomness; default: torch's global one of the device.
        always: Integer ``[a]`` tokens that are kept in any case (class and virtual tokens); they count among the m.
        minimum: Least number of tokens that are kept.
        device: Where the subset lives; default: the generator's device, else the CPU.

    Returns:
        int64 ``[*batch, m]``, ascending, m as :func:`count_kept` says (but no fewer than ``always``).

    Raises:
        ArgumentError: If ``keep`` is no share in 0..1.
    """
    kept = _uniform(num_tokens, keep, math.prod(batch), generator, always, minimum, device)
    return kept.view(*batch, kept.shape[1]).long()


def uniform_graph(
    num_tokens: int,
    keep: float,
    *,
    batch: int | None = None,
    generator: Generator = None,
    always: Tensor | None = None,
    minimum: int = 1,
    causal: bool = False,
    device: Device = None,
) -> ListGraph:
    """Every token reads the same uniform subset of the tokens (:func:`uniform_sources`).

    Args:
        num_tokens: N.
        keep: Share of the tokens that is kept.
        batch: So many batch entries with a subset of their own; ``None``: one graph for all.
        generator: See :func:`uniform_sources`.
        always: See :func:`uniform_sources`.
        minimum: See :func:`uniform_sources`.
        causal: Targets skip the sources after them, and read themselves in any case: no row is empty.
        device: See :func:`uniform_sources`.

    Returns:
        A list graph with one list for each copy.
    """
    sizes = () if batch is None else (batch,)
    if count_kept(num_tokens, keep, minimum) == num_tokens:  # in order, so that this is dense attention to the bit
        index = torch.arange(num_tokens, device=device if generator is None or device is not None else generator.device)
        index = index.expand(*sizes, -1)
    else:
        index = _uniform(num_tokens, keep, math.prod(sizes), generator, always, minimum, device)
    index = index.reshape(math.prod(sizes), 1, index.shape[-1])
    axes = "" if batch is None else "b"
    lists = SourceLists(index, None, None, num_tokens, num_tokens, max(num_tokens, 1), axes, causal, causal, not causal)
    return ListGraph(lists, sizes)


def uniform_pairs(
    num_tokens: int,
    keep: float,
    *,
    batch: Sequence[int] = (),
    axes: str = "",
    generator: Generator = None,
    keep_self: bool = False,
    always: Tensor | None = None,
    causal: bool = False,
    device: Device = None,
) -> BitGraph:
    """Each pair of tokens with probability ``keep``, independently (EGT's random mask, before the softmax).

    Args:
        num_tokens: N.
        keep: Probability in 0..1.
        batch: Leading dimensions, as ``axes`` names them.
        axes: ``""``, ``"h"``, ``"b"`` or ``"bh"``.
        generator: See :func:`uniform_sources`.
        keep_self: Every token reads itself in any case.
        always: See :func:`uniform_sources`.
        causal: Only pairs whose source is not after its target.
        device: See :func:`uniform_sources`.

    Raises:
        ArgumentError: If ``keep`` is no probability.
    """
    if not 0.0 <= keep <= 1.0:
        raise ArgumentError(f"keep must be a probability in 0..1, got {keep}")
    drawn = draw(torch.rand, (math.prod(batch), num_tokens, num_tokens), generator, device)
    if always is not None:
        drawn.index_fill_(-1, always.to(drawn.device), -1.0)
    if causal:
        drawn.masked_fill_(torch.ones(drawn.shape[1:], dtype=torch.bool, device=drawn.device).triu_(1), 2.0)
    words = select_bits(-drawn, at=-keep, keep_self=keep_self)
    return BitGraph(words.view(*batch, *words.shape[1:]), num_tokens, axes, known_causal=causal)


def _uniform(
    tokens: int, keep: float, copies: int, generator: Generator, always: Tensor | None, minimum: int, device: Device
) -> Tensor:
    """int32 ``[copies, m]``, ascending: the m largest of as many random numbers as there are tokens, in one launch."""
    count = count_kept(tokens, keep, minimum)
    drawn = draw(torch.rand, (copies, tokens), generator, device)
    if always is not None:
        count = max(count, always.shape[0])
        drawn = drawn.index_fill_(-1, always.to(drawn.device), 2.0)
    return select_lists(drawn.unsqueeze(1), count)[0].squeeze(1)
