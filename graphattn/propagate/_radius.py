"""Whether the series of powers of an operator converges."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.propagate.operator import AttentionOperator

__all__ = ["check_converges"]

_STEPS = 32


@torch.no_grad()
def check_converges(name: str, operator: AttentionOperator, gamma: float | Tensor, like: Tensor) -> float:
    """Raise unless the spectral radius of gamma times A is below 1 for every member and head; waits for the device.

    Norms bound the radius from above, and mostly settle it. Where they do not, 64 power steps estimate it.

    Args:
        name: Of the propagator, for the error.
        operator: The weighted graph A.
        gamma: The discount; a tensor as it multiplies rows.
        like: The values.

    Returns:
        The largest spectral radius of gamma times A: the bound by norms where it is below 1, else the estimate.
    """
    members = operator.members
    # A discount for each row is one for each member: all rows of a member have the same.
    rows = torch.as_tensor(gamma, dtype=like.dtype, device=like.device).abs().detach()
    rows = rows.expand(operator.num_targets, like.shape[1], 1)[..., 0]
    factor = members.max(rows).clamp(min=0.0)  # of a member without rows, too
    bound = (factor * operator.bound()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    top = float(bound.max()) if bound.numel() else 0.0
    if top < 1:
        return top

    x = like.new_ones(operator.num_targets, like.shape[1], 1)
    radius = bound
    for _ in range(2):
        growth = torch.zeros_like(bound)  # logarithm of what these steps do to the vector
        for _ in range(_STEPS):
            x = operator.matmul(x)
            norm = members.max(x.abs()[..., 0]).clamp(min=0.0)
            growth += norm.log()
            x = x / members.spread(torch.where(norm > 0, norm, 1)).unsqueeze(-1)
        # From a vector of ones, and for weights that are not negative, this is above the radius; then, ever closer.
        radius = torch.minimum(radius, factor * (growth / _STEPS).exp())
    worst = float(radius.max())
    if worst < 1 - 16 * torch.finfo(like.dtype).eps:
        return worst
    member, head = divmod(int(radius.argmax()), radius.shape[1])
    discount = float(factor[member, head])
    raise ArgumentError(
        f"{name}: the series cannot converge: the discount, {discount:.6g}, times the spectral radius of the attention "
        f"weights, about {worst / discount:.6g} (norms bound it by {float(bound[member, head]) / discount:.6g}), is "
        f"not below 1 in member {member}, head {head}; take a discount below {discount / worst:.6g}, or a normaliser "
        f"such as 'frobenius'"
    )
