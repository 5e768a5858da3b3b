"""What :mod:`graphattn.attention` asks of its arguments, and the dtype it gives them under autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph

__all__ = [
    "autocast",
    "check_backend",
    "check_clamp",
    "check_edge_tensor",
    "check_graph",
    "check_inputs",
    "check_rows",
]


def check_rows(name: str, x: object, size: int, what: str) -> None:
    """Raise unless ``x`` is floating ``[..., size, H, D]``."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(f"{name} must be a floating tensor, got {got}")
    if x.dim() < 3 or x.shape[-3] != size:
        raise ArgumentError(f"{name} must be [..., {size}, H, D] for {size} {what} of the graph, got {list(x.shape)}")


def check_clamp(clamp: float | None) -> None:
    """Raise unless ``clamp`` is positive or ``None``."""
    if clamp is not None and not clamp > 0:
        raise ArgumentError(f"clamp must be positive, got {clamp}")


def check_backend(backend: object) -> None:
    """Raise unless ``backend`` is a name."""
    if not isinstance(backend, str):
        raise ArgumentTypeError(f"backend must be 'auto' or a name, got {type(backend).__name__}")


def check_graph(graph: object) -> None:
    """Raise unless ``graph`` is a TokenGraph."""
    if not isinstance(graph, TokenGraph):
        raise ArgumentTypeError(
            f"graph must be a TokenGraph, got {type(graph).__name__}; see TokenGraph.from_edge_index"
        )


def check_edge_tensor(name: str, x: object, device: torch.device) -> None:
    """Raise unless ``x`` is a floating tensor on ``device``."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(f"{name} must be a floating tensor, got {got}")
    if x.device != device:
        raise ArgumentError(f"{name} must be on the device of the graph, {device}, got {x.device}")


def check_inputs(
    graph: TokenGraph, q: Tensor | None, k: Tensor | None, v: Tensor | None, score: object, **edge: object
) -> None:
    """Raise unless tokens and edge tensors fit each other and the graph; the shapes of edge tensors are left to
    :class:`~graphattn._fold.Fold`."""
    check_graph(graph)
    tensors: dict[str, object] = dict(edge)
    if isinstance(score, Tensor):
        if q is not None or k is not None:
            raise ArgumentError("q and k must be None where score is a ready edge tensor")
        check_edge_tensor("score", score, graph.device)
        first, name = score, "score"
    else:
        if q is None or k is None:
            raise ArgumentError("q and k are needed unless score is a ready edge tensor")
        check_rows("q", q, graph.num_targets, "targets")
        check_rows("k", k, graph.num_sources, "sources")
        if q.shape[:-3] != k.shape[:-3] or q.shape[-2:] != k.shape[-2:]:
            raise ArgumentError(
                f"q and k must agree but for the number of tokens, got {list(q.shape)} and {list(k.shape)}"
            )
        if q.shape[-1] < 1:
            raise ArgumentError(f"q and k must have at least one channel, got {list(q.shape)}")
        first, name = q, "q"
        tensors = {"k": k, "v": v, **tensors}
    if v is not None:
        check_rows("v", v, graph.num_sources, "sources")
        if v.device != first.device:
            raise ArgumentError(f"v must be on the device of {name}, {first.device}, got {v.device}")
        if q is not None and (v.shape[:-3] != q.shape[:-3] or v.shape[-2] != q.shape[-2]):
            raise ArgumentError(
                f"v must have the leading dimensions and heads of q, got {list(v.shape)} and {list(q.shape)}"
            )
    for other, x in tensors.items():
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"{other} must be a tensor, got {type(x).__name__}")
        if x.dtype != first.dtype or x.device != first.device:
            raise ArgumentTypeError(
                f"{other} must have the dtype and device of {name}, {first.dtype} on {first.device}, "
                f"got {x.dtype} on {x.device}"
            )
    if graph.device != first.device:
        raise ArgumentError(
            f"graph must be on the device of {name}, {first.device}, got {graph.device}; use graph.to(...)"
        )


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, everything in the autocast dtype (a matrix product upstream may have made only some so)."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device = next((x.device.type for x in tensors if x is not None), "cpu")
    if device not in ("cpu", "cuda", "mps", "xpu") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Tensor | None) -> Tensor | None:
        return x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x

    return tuple(cast(x) for x in tensors)
