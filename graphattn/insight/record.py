"""What the attention layers of a model weigh while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graphattn._watch import Seen, watch
from graphattn.graph import TokenGraph

__all__ = ["LayerRecord", "modules_inside", "record"]


@dataclass(frozen=True)
class LayerRecord:
    """One call of attention; tensors are detached.

    Args:
        layer: Name of the module that called (``"blocks.0.attn"``); empty outside the model's modules.
        graph: Who may read whom.
        q: ``[..., T, H, D]`` queries, where there are any.
        k: ``[..., S, H, D]`` keys.
        weights: ``[..., E, H]`` of one hop, before dropout and discount, in the graph's edge order; ``None`` for an
            attention that has no weights of edges.
        sources: ``[..., S, H]``: the score of each source, for an attention of rank one (Linear-InfSA).
    """

    layer: str
    graph: TokenGraph
    q: Tensor | None
    k: Tensor | None
    weights: Tensor | None
    sources: Tensor | None


@contextmanager
def record(model: nn.Module) -> Iterator[list[LayerRecord]]:
    """A list that grows by one entry for each call of :func:`graphattn.attend`, or of a mechanism with an operation of
    its own, while the block runs.

    The weights are computed beside the call, so the model gives the same bits. They are all kept: ``[B, E, H]`` numbers
    for each layer. Layers that do not call this library's attention (GatedGCN's gates, PyG's own layers) leave no
    entry; nor does compiled code.

    Args:
        model: The model, whose modules give the entries their names.

    Example:
        >>> import torch
        >>> from graphattn.models.image import VisionTransformer
        >>> model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2).eval()
        >>> with torch.no_grad(), record(model) as layers:
        ...     _ = model(torch.randn(3, 3, 8, 8))
        >>> [(entry.layer, list(entry.weights.shape)) for entry in layers]
        [('blocks.0.attn', [3, 25, 2]), ('blocks.1.attn', [3, 25, 2])]
    """
    found: list[LayerRecord] = []

    def see(seen: Seen) -> None:
        name = inside[-1] if inside else ""
        found.append(LayerRecord(name, seen.graph, seen.q, seen.k, seen.edge_weights(), seen.sources))

    with modules_inside(model) as inside, watch(see):
        yield found


@contextmanager
def modules_inside(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules of a model that are being called, the innermost last."""
    inside: list[str] = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            inside.append(name)

        return hook

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        inside.pop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield inside
