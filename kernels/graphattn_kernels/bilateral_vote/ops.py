"""Schemas, fakes and the gradient: saved are the cube, and the channel that was chosen at each pixel."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from graphattn_kernels._library import register
from graphattn_kernels.bilateral_vote.impl import gather

__all__ = ["agreed_edges", "bilateral_vote"]


def _implementation(backend: str) -> ModuleType:
    if backend == "triton":  # imported on first use: it compiles for the machine it runs on
        from graphattn_kernels.bilateral_vote.impl import triton

        return triton
    return gather


def _forward(cube: Tensor, rank: int, logits: bool, backend: str) -> tuple[Tensor, Tensor | None]:
    return _implementation(backend).forward(cube, rank, logits)


def _fake(cube: Tensor, rank: int, logits: bool, backend: str) -> tuple[Tensor, Tensor]:
    out = cube.new_empty((cube.shape[0], *cube.shape[2:]))
    return out, cube.new_empty(out.shape if rank else (0,), dtype=torch.uint8 if rank else cube.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
    cube, *ctx.options = inputs
    ctx.has_chosen = inputs[1] != 0
    ctx.save_for_backward(cube, output[1] if ctx.has_chosen else None)
    if output[1] is not None:
        ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,)
    cube, chosen = ctx.saved_tensors
    rank, logits, backend = ctx.options
    return (_vote_backward(cube, rank, logits, chosen, grad, backend),)


def _backward_implementation(
    cube: Tensor, rank: int, logits: bool, chosen: Tensor | None, grad: Tensor, backend: str
) -> Tensor:
    return _implementation(backend).backward(cube, rank, logits, chosen, grad)


def _backward_fake(cube: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(cube, memory_format=torch.contiguous_format)


def _agreed(cube: Tensor, threshold: float, backend: str) -> Tensor:
    return _implementation(backend).agreed_edges(cube, threshold)


def _agreed_fake(cube: Tensor, threshold: float, backend: str) -> Tensor:
    return cube.new_empty((cube.shape[0], *cube.shape[2:]), dtype=torch.uint8)


_operator = register(
    "bilateral_vote(Tensor cube, int rank, bool logits, str backend) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _setup,
    _backward,
    slice(0, 1),
)
_vote_backward = register(
    "bilateral_vote_backward(Tensor cube, int rank, bool logits, Tensor? chosen, Tensor grad, str backend) -> Tensor",
    _backward_implementation,
    _backward_fake,
)
agreed_edges = register("agreed_edges(Tensor cube, float threshold, str backend) -> Tensor", _agreed, _agreed_fake)


def bilateral_vote(cube: Tensor, rank: int, logits: bool, backend: str) -> Tensor:
    """The map; the chosen channels stay with autograd."""
    return _operator(cube, rank, logits, backend)[0]
