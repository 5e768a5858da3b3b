"""How well a layer chooses what it reads: its graph beside the true attention's own best, at the same degree."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.mechanisms.parts.learned_choice import LearnedChoice, Seen, is_complete

__all__ = ["SelectionQuality", "selection_quality"]


class SelectionQuality(NamedTuple):
    """The choice of one layer in one call, over all rows that choose (not the class token's), heads and images.

    Args:
        layer: Name of the module.
        keys: Mean number of keys of a row.
        recall: recall@b: the share of its choice that is also the true attention's choice of as many. With keys shared
            by blocks, beside the choice that each row would have made alone.
        retained: The share of the attention that lies on the chosen edges. One minus it is the total variation distance
            of a row of sparse attention from the dense row.
        best: The same for the true attention's own choice, which no other of this degree exceeds.
    """

    layer: str
    keys: float
    recall: float
    retained: float
    best: float


@torch.no_grad()
def selection_quality(model: nn.Module, *inputs: Any, **named: Any) -> list[SelectionQuality]:
    """Run a model as it is, and compare what its layers chose with what their queries and keys say.

    Args:
        model: A module with :class:`~graphattn.mechanisms.Sparsifiner` or :class:`~graphattn.conv.SparsifinerConv`
            layers.
        *inputs: Arguments of the model.
        **named: The same.

    Returns:
        An entry for each call of such a layer, layer by layer.

    Raises:
        ArgumentError: If the model has no such layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LearnedChoice)}
    if not layers:
        raise ArgumentError(f"model must have a layer that chooses its edges, got {type(model).__name__}")
    calls: dict[str, list[Seen]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.seen = calls[name]
    try:
        model(*inputs, **named)
    finally:
        for layer in layers.values():
            layer.seen = None
    return [_compare(name, layer, call) for name, layer in layers.items() for call in calls[name]]


def _compare(name: str, layer: LearnedChoice, call: Seen) -> SelectionQuality:
    attention = layer.attention(call.graph, call.q, call.k).double()
    chosen = layer.chosen(call)
    if is_complete(call.graph):
        chosen = chosen.expand_as(attention)
        best = attention.argsort(dim=-1, descending=True, stable=True).argsort(-1) < chosen.sum(-1, keepdim=True)
    else:
        attention = attention.movedim(-1, -2).flatten(0, -2)
        best = _best_of_edges(call, attention, chosen)
    edges, mass = chosen.sum().clamp(min=1), attention.sum()
    rows = attention.shape[:-1].numel() if is_complete(call.graph) else mass
    return SelectionQuality(
        name,
        float(chosen.sum() / rows),
        float((chosen & best).sum() / edges),
        float((attention * chosen).sum() / mass),
        float((attention * best).sum() / mass),
    )


def _best_of_edges(call: Seen, attention: Tensor, chosen: Tensor) -> Tensor:
    """As many of the best edges of each target as were chosen; all ``[copies, E]`` in the caller's order."""
    target = call.graph.edge_index[1]
    count = torch.zeros(chosen.shape[0], call.graph.num_targets, dtype=torch.int64, device=chosen.device)
    count = count.scatter_add(1, target.expand_as(chosen), chosen.long())
    order = attention.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, target[order].argsort(dim=-1, stable=True))
    degree = torch.bincount(target, minlength=call.graph.num_targets)
    first = degree.cumsum(0) - degree
    rank = torch.arange(target.shape[0], device=target.device) - first.repeat_interleave(degree)
    inside = rank < count.gather(1, target[order])
    return torch.zeros_like(chosen).scatter(-1, order, inside)
