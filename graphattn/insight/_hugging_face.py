"""Attention of Hugging Face's transformers, seen where their models look their attention function up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from graphattn._watch import unwatched
from graphattn.errors import ArgumentError, MissingPackageError
from graphattn.insight.maps import Columns, MapPart, one_hot_rows

__all__ = ["is_hugging_face", "watch_hugging_face"]


def is_hugging_face(model: nn.Module) -> bool:
    """Whether some module of a model is a model of transformers (which then is imported already)."""
    package = sys.modules.get("transformers")
    return package is not None and any(isinstance(module, package.PreTrainedModel) for module in model.modules())


@contextmanager
def watch_hugging_face(model: nn.Module, see: Callable[[str, Iterator[MapPart]], None]) -> Iterator[None]:
    """Call ``see(name of the module, parts of its maps)`` for each attention function that a model calls in the block.

    The function itself is asked for the weights, with one-hot values, so that any implementation, mask and grouping of
    heads is right.
    """
    from transformers.modeling_utils import AttentionInterface  # there is a model of it

    looked_up = getattr(AttentionInterface, "get_interface", None)
    if looked_up is None:
        raise MissingPackageError(
            "capturing attention of this model needs a transformers whose AttentionInterface has get_interface; "
            'install it with: pip install --upgrade "transformers>=5"'
        )
    names = {id(module): name for name, module in model.named_modules()}

    def get_interface(self: Any, implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = looked_up(self, implementation, default)

        def call(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
        ) -> Any:
            with unwatched():  # an implementation may be ours
                out = function(module, query, key, value, attention_mask, *args, **kwargs)
                if id(module) in names and query.shape[-2] == key.shape[-2]:
                    if args:
                        raise ArgumentError(f"{type(module).__name__} hands its attention function unnamed arguments")
                    with torch.no_grad():
                        see(names[id(module)], _parts(function, module, query, key, value, attention_mask, kwargs))
            return out

        return call

    AttentionInterface.get_interface = get_interface
    try:
        yield
    finally:
        AttentionInterface.get_interface = looked_up


def _parts(
    function: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    kwargs: dict[str, Any],
) -> Iterator[MapPart]:
    """Columns of the maps ``[B, H, N, N]``, as many at a time as a value has channels."""
    kwargs = {**kwargs, "dropout": 0.0}
    sources, width = value.shape[-2:]
    for first in range(0, sources, width):
        values = one_hot_rows(torch.zeros_like(value), first)
        count = min(width, sources - first)
        weights, even = (
            function(module, q, key, values, mask, **kwargs)[0][..., :count].transpose(1, 2)
            for q in (query, torch.zeros_like(query))
        )
        yield Columns(weights, even=even, first=first, num_sources=sources)
