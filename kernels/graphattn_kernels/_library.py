"""Registration of operators with ``torch.library``.

``define`` and ``impl`` instead of ``custom_op``: half of its cost for each call, and a graph layer makes many
small calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["register"]

_LIBRARY = torch.library.Library("graphattn", "FRAGMENT")


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define ``graphattn::<name>`` for every device and return it.

    Args:
        schema: ``name(arguments) -> results`` in the schema language of ``torch.library``.
        implementation: The eager function; chooses a backend by its ``backend`` argument.
        fake: Shapes and dtypes of the results, for ``torch.compile`` and ``torch.export``.
        setup_context: What to save for ``backward``.
        backward: The gradient. Without one, differentiating the operator raises.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"graphattn::{name}", fake, lib=_LIBRARY)
    if backward is None:
        backward = _no_second_order(name)
        setup_context = None
    torch.library.register_autograd(f"graphattn::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    return getattr(torch.ops.graphattn, name).default


def _no_second_order(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"graphattn::{name} has no gradient of its own; for second derivatives use backend='reference'"
        )

    return backward
