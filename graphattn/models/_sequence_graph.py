"""Which graph, and which positions, the tokens of a sequence have: whole, in pieces, padded, or after others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph, patterns
from graphattn.graph.check import check_ptr

__all__ = ["GraphRule", "check_tokens", "next_tokens", "positions_of", "token_graph"]

GraphRule = Literal["causal"] | Callable[[int], TokenGraph]


def check_tokens(
    x: Tensor, graph: TokenGraph | None, ptr: Tensor | None, mask: Tensor | None, past: int | None
) -> None:
    """Raise unless rows, pieces and mask fit each other, and ``past`` tokens that are kept (``None``: no cache)."""
    if x.dim() < 2:
        raise ArgumentError(f"rows of tokens must be [..., N, width], got {list(x.shape)}")
    if graph is not None and (ptr is not None or mask is not None):
        raise ArgumentError("ptr and mask do not go with graph: let the graph say who is there")
    if ptr is not None and (x.dim() != 2 or mask is not None or past is not None):
        raise ArgumentError(
            f"ptr is for one row of tokens [N], without mask and cache; got rows {list(x.shape)}, "
            f"mask {'given' if mask is not None else 'None'}, cache {'None' if past is None else 'given'}"
        )
    if ptr is not None and not x.is_cuda:
        check_ptr("ptr", ptr, x.shape[0], x.device)
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ArgumentTypeError(f"mask must be bool, got {mask.dtype}")
    if x.dim() != 3 or mask.shape != (x.shape[0], x.shape[1] + (past or 0)):
        kept = f" after {past} that are kept" if past else ""
        raise ArgumentError(f"mask must be [B, N] for rows {list(x.shape)}{kept}, got {list(mask.shape)}")


def positions_of(x: Tensor, past: int, ptr: Tensor | None, mask: Tensor | None) -> Tensor:
    """0, 1, ... from the first token of each sequence, ``[N]`` or ``[B, N]``."""
    count = x.shape[-2]
    if mask is not None:
        return (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
    positions = torch.arange(past, past + count, device=x.device)
    if ptr is None:
        return positions
    member = torch.searchsorted(ptr, positions, right=True) - 1
    return positions - ptr[member]


def token_graph(rule: GraphRule, x: Tensor, past: int, ptr: Tensor | None, mask: Tensor | None) -> TokenGraph:
    """The graph of new tokens over all of them, by the model's rule."""
    new, every = x.shape[-2], past + x.shape[-2]
    mask = None if mask is None or not len(mask) else mask  # of no texts
    if ptr is not None:
        return _packed(rule, ptr, every, x.device)
    if rule == "causal" and new == 1 and mask is None:  # the last token reads all
        return patterns.complete(1, every, device=x.device)
    graph = _of_size(rule, every, x.device)
    if mask is None and past == 0:
        return graph
    if mask is None:
        place = torch.arange(every, device=x.device)
        return TokenGraph.from_adj_t(_reads(graph, place[past:], place))
    places = positions_of(x, 0, None, mask)  # in its text, not among padding: a window is of tokens that are there
    reads = [_reads(graph, place[past:], place) & there for place, there in zip(places, mask, strict=True)]
    return TokenGraph.stack([TokenGraph.from_adj_t(read) for read in reads])


def _reads(graph: TokenGraph, target: Tensor, source: Tensor) -> Tensor:
    """bool ``[T, S]``: whether the token at each place ``target`` reads the one at each place ``source``."""
    if graph.pattern is not None:
        return graph.pattern.contains(target[:, None], source)
    return graph.to_dense()[target][:, source]


def _of_size(rule: GraphRule, size: int, device: torch.device) -> TokenGraph:
    """What the rule says of ``size`` tokens."""
    if rule == "causal":
        return patterns.causal(size, device=device)
    graph = rule(size)
    if graph.num_tokens != size:
        raise ArgumentError(f"graph must give a graph over {size} tokens, got {graph.num_tokens}")
    return graph.to(device)


def _packed(rule: GraphRule, ptr: Tensor, every: int, device: torch.device) -> TokenGraph:
    """The graph of several sequences in one row: each has the one that the rule gives for its own tokens."""
    blocks = patterns.blocks(ptr, num_tokens=every, validate=False)
    if not every:  # a rule may have nothing to say of no tokens
        return blocks
    row = _of_size(rule, every, device)
    if rule == "causal":
        return row & blocks
    sizes: list[int] = ptr.diff().tolist()
    graphs = {size: _of_size(rule, size, device) for size in set(sizes) if size}
    if all(None is not _distances(row, size) == _distances(graph, size) for size, graph in graphs.items()):
        return row & blocks  # which enumerates nothing
    empty = patterns.complete(0, device=device)
    return TokenGraph.batch([graphs.get(size, empty) for size in sizes])


def _distances(graph: TokenGraph, size: int) -> tuple[object, ...] | None:
    """Between which distances of ``size`` tokens in a row there are edges, in a form to be compared; ``None`` where
    places matter, too, as with hubs, or the graph does not say."""
    if isinstance(graph, patterns.Causal):
        return "window", size - 1, 1, True
    if isinstance(graph, patterns.Complete):
        return "window", size - 1, 1, False
    if isinstance(graph, patterns.Window):
        return "window", min(graph.size, (size - 1) // graph.dilation), graph.dilation, graph.causal
    if isinstance(graph, (patterns.Union, patterns.Intersection, patterns.Difference)):
        parts = [_distances(part, size) for part in (graph.first, graph.second)]
        return None if None in parts else (type(graph).__name__, *parts)
    return None


def next_tokens(tokens: Tensor, ptr: Tensor | None, mask: Tensor | None) -> Tensor:
    """The token after each in its sequence, -100 where there is none."""
    after = torch.full_like(tokens, -100)
    if mask is None:
        after[..., :-1] = tokens[..., 1:]
    else:  # the next that is there
        for row, there, found in zip(tokens, mask, after, strict=True):
            place = there.nonzero().flatten()
            found[place[:-1]] = row[place[1:]]
    if ptr is not None:
        after[(ptr[1:] - 1).long()] = -100
    return after
