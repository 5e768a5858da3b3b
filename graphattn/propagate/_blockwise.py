"""A function of rows in blocks: computed again, block by block, in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from graphattn.propagate._once import once

__all__ = ["blockwise"]


def blockwise(
    function: Callable[..., Tensor], blocks: Sequence[slice], *tensors: Tensor, shape: Sequence[int], add: bool
) -> Tensor:
    """``function(rows, *tensors)`` of every block of rows, one after another or added up.

    The backward pass stores ``tensors`` only, and has one block at a time in memory. It can be differentiated once.

    Args:
        function: Differentiable in the tensors, and in nothing else.
        blocks: Of rows, dimension 2.
        *tensors: Handed to the function.
        shape: Of the result.
        add: Add the blocks' results, all of this shape; else they are its rows.
    """
    if not torch.compiler.is_compiling():
        return _Blockwise.apply(function, blocks, shape, add, *tensors)  # type: ignore[no-any-return]
    parts = [checkpoint(function, rows, *tensors, use_reentrant=False, preserve_rng_state=False) for rows in blocks]
    if not parts:
        return tensors[0].new_zeros(shape)
    return torch.stack(parts).sum(0) if add else torch.cat(parts, 2)


class _Blockwise(torch.autograd.Function):
    """Results and gradients are made before the blocks: a piece of them in the room that a block leaves would keep the
    next block from taking it, and the process would grow by the size of all blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        blocks: Sequence[slice],
        shape: Sequence[int],
        add: bool,
        *tensors: Any,
    ) -> Tensor:
        ctx.function, ctx.blocks, ctx.add = function, blocks, add
        ctx.save_for_backward(*tensors)
        out = tensors[0].new_zeros(shape)
        for rows in blocks:
            part = out if add else out[:, :, rows]
            part += function(rows, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[4:]
        tensors = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        wanted = [x for x in tensors if x.requires_grad]
        grads = [torch.zeros_like(x) for x in wanted]
        for rows in ctx.blocks:
            with torch.enable_grad():
                part = ctx.function(rows, *tensors)
            for grad, more in zip(
                grads,
                torch.autograd.grad(part, wanted, slope if ctx.add else slope[:, :, rows], materialize_grads=True),
                strict=True,
            ):
                grad += more
            del part
        found = map(once, grads)
        return (None,) * 4 + tuple(next(found) if need else None for need in needed)
