"""What the attention layers of a model weigh, reduced while it runs: no map is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphattn._watch import Seen, watch
from graphattn.graph.pattern import Pattern
from graphattn.insight._hugging_face import is_hugging_face, watch_hugging_face
from graphattn.insight.maps import Columns, Edges, MapPart, one_hot_rows
from graphattn.insight.received import Reducer
from graphattn.insight.record import modules_inside

__all__ = ["Captured", "capture"]

_KEPT = 1 << 25  # weights of one layer that may be there at a time


@dataclass(frozen=True)
class Captured:
    """One call of attention.

    Args:
        layer: Name of the module that called (``"blocks.0.attn"``); empty outside the model's modules.
        results: What each reducer found, by name. Leading dimensions are the batch's, if any, and then the heads.
    """

    layer: str
    results: dict[str, Any]


@contextmanager
def capture(
    model: nn.Module, reducers: Mapping[str, Callable[[], Reducer]], *, max_weights: int = _KEPT
) -> Iterator[list[Captured]]:
    """A list that grows by one entry for each call of attention while the block runs: of :func:`graphattn.attend` and
    of the library's mechanisms, and of models of Hugging Face's transformers, whatever their ``attn_implementation``.

    The model gives the same bits: the weights are computed beside the call, handed to the reducers and dropped. Where a
    layer has more than ``max_weights`` of them, they come some columns at a time, computed by the very function that
    the layer calls, with values of one-hot rows, so that nothing of the size N x N is made; the same goes for all
    models of Hugging Face. Weights are those before dropout, with what the layer's dtype does to them.

    No entry is left by layers of rank one (Linear-InfSA), which have no weights of pairs; by Hugging Face calls with
    other sources than targets (decoding with a cache); and by compiled code. Rows of padding are whatever the layer
    makes of them: leave them out with the reducers' arguments.

    Args:
        model: The model, whose modules give the entries their names.
        reducers: What to make of each call, by name: functions without arguments that give a fresh
            :class:`~graphattn.insight.Reducer`.
        max_weights: Of one layer, at a time.

    Example:
        >>> import torch
        >>> from graphattn.insight import ReceivedAttention, waad
        >>> from graphattn.models.sequence import CausalTransformer
        >>> model = CausalTransformer(10, width=16, heads=2, layers=1).eval()
        >>> with capture(model, {"received": ReceivedAttention, "waad": waad}) as layers, torch.no_grad():
        ...     _ = model(torch.randint(10, (3, 7)))
        >>> [(entry.layer, list(entry.results["waad"].shape)) for entry in layers]
        [('blocks.0.attn', [3, 2, 7])]
    """
    found: list[Captured] = []

    def reduce(layer: str, parts: Iterator[MapPart]) -> None:
        own = {name: make() for name, make in reducers.items()}
        for part in parts:
            for reducer in own.values():
                reducer.update(part)
        found.append(Captured(layer, {name: reducer.result() for name, reducer in own.items()}))

    def see(seen: Seen) -> None:
        if seen.weights is not None:
            reduce(inside[-1] if inside else "", _parts(seen, max_weights))

    with ExitStack() as stack:
        inside = stack.enter_context(modules_inside(model))
        stack.enter_context(watch(see))
        if is_hugging_face(model):
            stack.enter_context(watch_hugging_face(model, reduce))
        yield found


def _parts(seen: Seen, max_weights: int) -> Iterator[MapPart]:
    graph = seen.graph
    edges = graph.max_edges if isinstance(graph, Pattern) else graph.num_edges
    if seen.k is None or seen.hop is None or edges * _copies(seen.k, graph.leading_axes) <= max_weights:
        weights = seen.edge_weights()
        assert weights is not None
        yield Edges(graph, weights)
        return
    sources, width = seen.k.shape[-3], seen.k.shape[-1]
    for first in range(0, sources, width):
        values = one_hot_rows(torch.zeros_like(seen.k).movedim(-2, -3), first).movedim(-3, -2)
        count = min(width, sources - first)
        weights, even = (seen.hop(values, equal)[..., :count].movedim(-2, -3) for equal in (False, True))
        yield Columns(weights, even=even, first=first, num_sources=sources)


def _copies(k: Tensor, axes: str) -> int:
    """How many weights an edge has: heads and batch entries that the graph does not count itself."""
    heads = 1 if axes.endswith("h") else k.shape[-2]
    return heads * (1 if axes.startswith("b") else math.prod(k.shape[:-3]))
