"""How a connectivity predictor learns: from the attention that it is to stand for (Sparsifiner's first stage)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.mechanisms.parts.learned_choice import LearnedChoice, Reconstruction, Seen

__all__ = ["Reconstruction", "dense_attention", "predictor_parameters", "reconstruct", "reconstruction_loss"]


def _layers(model: nn.Module) -> dict[str, LearnedChoice]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LearnedChoice)}


def predictor_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of all connectivity predictors of a model."""
    return [p for layer in _layers(model).values() if layer.predictor is not None for p in layer.predictor.parameters()]


@contextmanager
def dense_attention(model: nn.Module) -> Iterator[None]:
    """Inside the block, all layers of a model that choose their edges attend over all candidates."""
    layers = list(_layers(model).values())
    before = [layer.dense for layer in layers]
    for layer in layers:
        layer.dense = True
    try:
        yield
    finally:
        for layer, dense in zip(layers, before, strict=True):
            layer.dense = dense


def reconstruct(model: nn.Module, *inputs: Any, **named: Any) -> list[Reconstruction]:
    """Run a model with dense attention and without gradient, and let each layer's predictor say what it saw.

    In the released code of Sparsifiner the network's own parameters get gradients here that no optimiser applies; here
    they get none, which gives the same predictor.

    Args:
        model: Any module with :class:`~graphattn.mechanisms.Sparsifiner` or
            :class:`~graphattn.conv.SparsifinerConv` layers.
        *inputs: Arguments of the model.
        **named: The same.

    Returns:
        An entry for each call of a layer that has a predictor, layer by layer.

    Raises:
        ArgumentError: If there is no such layer.

    Example:
        >>> from graphattn import patterns
        >>> from graphattn.mechanisms import Sparsifiner
        >>> layer = Sparsifiner(8, 2)
        >>> [entry] = reconstruct(layer, torch.randn(3, 10, 8), patterns.complete(10))
        >>> entry.approximate.shape == entry.attention.shape == (3, 2, 10, 10)
        True
        >>> reconstruction_loss([entry]).backward()
    """
    learning = {name: layer for name, layer in _layers(model).items() if layer.predictor is not None}
    if not learning:
        raise ArgumentError(f"model must have a layer with a connectivity predictor, got {type(model).__name__}")
    calls: dict[str, list[Seen]] = {name: [] for name in learning}
    for name, layer in learning.items():
        layer.seen = calls[name]
    try:
        with torch.no_grad(), dense_attention(model):
            model(*inputs, **named)
    finally:
        for layer in learning.values():
            layer.seen = None
    return [layer.reconstruction(name, call) for name, layer in learning.items() for call in calls[name]]


def reconstruction_loss(
    found: list[Reconstruction], reduction: Literal["mean", "sum"] = "mean", targets: list[Tensor] | None = None
) -> Tensor:
    """Squared error of the predictors, averaged over layers.

    Args:
        found: From :func:`reconstruct`.
        reduction: ``"mean"``: over heads, rows and members of a batch, of the sum over a row's candidates, so that it
            depends neither on the batch nor on the number of tokens. ``"sum"``: over all of them, as the released code,
            which weighs it by 0.01 for batches of 168.
        targets: The attention of a teacher, a tensor for each entry; default: the model's own, which is the teacher's
            where the model starts from the teacher's weights.

    Raises:
        ArgumentError: If there is nothing to average, or shapes differ.
    """
    if reduction not in ("mean", "sum"):
        raise ArgumentError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    goals = [entry.attention for entry in found] if targets is None else targets
    if not found or len(goals) != len(found):
        raise ArgumentError(f"targets must have an entry for each of {len(found)} reconstructions, got {len(goals)}")
    losses = []
    for entry, goal in zip(found, goals, strict=True):
        if goal.shape != entry.approximate.shape:
            raise ArgumentError(
                f"targets of layer {entry.layer!r} must be {list(entry.approximate.shape)}, got {list(goal.shape)}"
            )
        error = (entry.approximate - goal.to(entry.approximate.dtype)).square().sum()
        losses.append(error if reduction == "sum" else error / entry.rows)
    return torch.stack(losses).mean()
