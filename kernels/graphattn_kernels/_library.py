"""Registration of operators with ``torch.library``.

``define`` and ``impl`` instead of ``custom_op``, and a gradient of our own under the key of autograd instead of
``register_autograd``: both look at the schema again at every call (0.2 ms for an operator with 20 arguments), and a
graph layer makes many small calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Packed", "autocast", "in_full", "is_plain", "register"]

_LIBRARY = torch.library.Library("graphattn", "FRAGMENT")


class Packed(NamedTuple):
    """How one object stands for the first arguments of an operator. In an eager call it stays what it is."""

    width: int
    """Number of these arguments."""
    flat: Callable[[Any], tuple[Any, ...]]
    """From the object to them."""
    unflat: Callable[[tuple[Any, ...]], Any]
    """The inverse; further arguments are ignored."""


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    differentiable: slice = slice(None),
    packed: Packed | None = None,
) -> Callable[..., Any]:
    """Define ``graphattn::<name>`` for every device and return it.

    Args:
        schema: ``name(arguments) -> results`` in the schema language of ``torch.library``, without defaults.
        implementation: The eager function; chooses a backend by its ``backend`` argument. A result may be ``None``: the
            operator then returns an empty tensor.
        fake: Shapes and dtypes of the results, for ``torch.compile`` and ``torch.export``.
        setup_context: What to save for ``backward``: a function of (ctx, arguments, results).
        backward: The gradients of the differentiable arguments: a function of (ctx, gradients of the results). Without
            one, differentiating the operator raises.
        differentiable: Which arguments may have a gradient. ``ctx.needs_input_grad`` begins with these.
        packed: The first argument of all functions here but ``fake``, and of what is returned, is an object.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, _filled(_of_flat(implementation, packed)), "CompositeExplicitAutograd")
    torch.library.register_fake(f"graphattn::{name}", fake, lib=_LIBRARY)
    operator = getattr(torch.ops.graphattn, name).default
    if backward is None:
        backward, setup_context = _no_second_order(name), None
    below = _of_object(_below_autograd(operator), packed)
    below = _differentiable(below, setup_context, backward, differentiable)
    _LIBRARY.impl(name, _of_flat(below, packed), "Autograd")
    direct = _differentiable(implementation, setup_context, backward, differentiable)
    if packed is None:

        def call(*args: Any) -> Any:
            return direct(*args) if is_plain(args) else operator(*args)

    else:
        flat = packed.flat

        def call(*args: Any) -> Any:
            first, *rest = args
            return direct(*args) if is_plain(rest) else operator(*flat(first), *rest)

    return call


def _of_flat(function: Callable[..., Any], packed: Packed | None) -> Callable[..., Any]:
    """A function of an object as one of the arguments that it stands for."""
    if packed is None:
        return function
    width, _, unflat = packed
    return lambda *args: function(unflat(args), *args[width:])


def _of_object(function: Callable[..., Any], packed: Packed | None) -> Callable[..., Any]:
    """The inverse of :func:`_of_flat`."""
    if packed is None:
        return function
    flat = packed.flat
    return lambda first, *rest: function(*flat(first), *rest)


# The types of arguments that tell nobody but autograd of a call.
_PLAIN = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str}


def is_plain(args: Sequence[Any]) -> bool:
    """Whether nobody but autograd wants to know of the call: no compiler, no exporter, no tensor of a special kind.

    The dispatcher would convert every argument to and fro four times in a forward and backward pass.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and _PLAIN.issuperset(map(type, args))
    )


def _filled(implementation: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        results = implementation(*args)
        if not isinstance(results, tuple):
            return results
        return tuple(results[0].new_empty(0) if x is None else x for x in results)

    return call


def _below_autograd(operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


def _differentiable(
    compute: Callable[..., Any],
    setup: Callable[..., None] | None,
    backward_function: Callable[..., Any],
    differentiable: slice,
) -> Callable[..., Any]:
    """``compute`` for tensors that may need a gradient."""

    class Function(torch.autograd.Function):
        # PyTorch looks at every argument several times, so it sees only those that matter, and then all in one.
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            every = args[-1]
            output = compute(*every)
            if setup is not None:
                setup(ctx, every, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return *backward_function(ctx, *grads), None

    def call(*args: Any) -> Any:
        if forward_ad._current_level >= 0 and any(_has_tangent(x) for x in args):
            raise RuntimeError("graphattn's operators have no forward-mode derivative; use backend='reference'")
        if not torch.is_grad_enabled():
            return compute(*args)
        inputs = args[differentiable]
        if True not in [x.requires_grad for x in inputs if isinstance(x, Tensor)]:
            return compute(*args)
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "graphattn's operators do not go through the transforms of torch.func; use torch.autograd.grad, "
                "or backend='reference'"
            )
        return Function.apply(*inputs, args)

    return call


def _has_tangent(x: Any) -> bool:
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None


def _no_second_order(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"graphattn::{name} has no gradient of its own; for second derivatives use backend='reference'"
        )

    return backward


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, everything in the autocast dtype (a matrix product upstream may have made only some so).

    float64 stays, as in PyTorch's own operators.
    """
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device = next((x.device.type for x in tensors if isinstance(x, Tensor)), "cpu")
    if device not in ("cpu", "cuda", "mps", "xpu") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Tensor | None) -> Tensor | None:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 else x

    return tuple(cast(x) for x in tensors)


def in_full(x: Tensor) -> AbstractContextManager[Any]:
    """Products in the dtype of their factors: autocast has been heeded when the arguments came in."""
    if not torch._C._is_any_autocast_enabled():
        return nullcontext()
    device = x.device.type
    if device in ("cpu", "cuda", "mps", "xpu") and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
