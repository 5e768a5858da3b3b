"""Several linear maps of the same rows as one product of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import module as modules
from torch.nn.parameter import Parameter

from graphattn.conv._pyg import Linear

__all__ = ["project_together"]

# Numbers of the results up to which launches take longer than the work: beyond, nothing is gained, and the results
# would stay in memory together where each may go by itself.
_MOST = 1 << 22
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple([getattr(modules, f"_global{name}") for name in _HOOKS])
_PLAIN = (Parameter, Tensor, type(None))  # as they are, and as torch.func puts them; not those that know better


def project_together(x: Tensor, maps: tuple[Linear, ...]) -> tuple[Tensor, ...]:
    """``map(x)`` for each map: on CUDA slices of one product where ``x`` is small, so that training on small graphs
    launches a third of what it would forward and backward. For results that are all kept until the backward pass: they
    are one piece of memory.

    Args:
        x: ``[N, F]``.
        maps: At least one. One that is more than its weight and bias (hooked, parametrised, replaced, quantised, not
            made yet) is called, and so are then all; a map twice gives its result twice.

    Returns:
        ``[N, width]`` for each map.
    """
    width = sum(m.out_channels for m in maps if type(m) is Linear)
    if torch.compiler.is_compiling() or not _pays(x, width) or not _are_plain(maps):
        return tuple(m(x) for m in maps)
    biases = [m.bias for m in maps]
    bias = None
    if any(b is not None for b in biases):
        if any(b is None for b in biases):
            return tuple(m(x) for m in maps)
        bias = torch.cat(biases)  # type: ignore[arg-type]
    rows = F.linear(x, torch.cat([m.weight for m in maps]), bias)
    # One node of autograd, which joins the gradients again; a slice each would fill the others with zeros.
    return rows.split_with_sizes([m.out_channels for m in maps], -1)  # type: ignore[no-any-return, no-untyped-call]


def _pays(x: Tensor, width: int) -> bool:
    return x.is_cuda and x.shape[0] * width <= _MOST


def _are_plain(maps: tuple[Linear, ...]) -> bool:
    # Of one dtype: joined, several would become the widest of them.
    return all(map(_is_plain, maps)) and not any(_GLOBAL_HOOKS) and len({m.weight.dtype for m in maps}) == 1


def _is_plain(module: Linear) -> bool:
    return (
        type(module) is Linear
        and "forward" not in module.__dict__  # put there by who moves weights to where they are needed
        and not any(getattr(module, name) for name in _HOOKS)
        and type(module.weight) in _PLAIN
        and type(module.bias) in _PLAIN
    )
