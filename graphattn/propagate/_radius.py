"""Whether the series of powers of an operator converges."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.propagate._dense import Padded, dense_blocks
from graphattn.propagate.operator import AttentionOperator

__all__ = ["check_converges"]

_STEPS = 32
_SQUARES = 10
# Tokens of a member up to which powers of the matrix are taken before a series is refused.
_SMALL = 256


@torch.no_grad()
def check_converges(name: str, operator: AttentionOperator, gamma: float | Tensor, like: Tensor) -> float:
    """Raise unless the spectral radius of gamma times A is below 1 for every member and head; waits for the device.

    Norms bound the radius from above, and mostly settle it. Where they do not, 64 products with :math:`|A|` do, and
    then, where members are small, powers of the matrix. All are upper bounds: where weights are negative, a series that
    converges may be refused in a large member, and a series that diverges never passes.

    Args:
        name: Of the propagator, for the error.
        operator: The weighted graph A.
        gamma: The discount; a tensor as it multiplies rows.
        like: The values.

    Returns:
        The largest bound of the spectral radius of gamma times A: the first that is below 1.
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

    limit = 1 - 16 * torch.finfo(like.dtype).eps
    radius = torch.minimum(bound, factor * _by_steps(operator, like))
    worst = float(radius.max())
    if not worst < limit:
        radius = _by_squares(operator, factor, radius, like)
        worst = float(radius.max())
    if worst < limit:
        return worst
    member, head = divmod(int(radius.argmax()), radius.shape[1])
    discount = float(factor[member, head])
    raise ArgumentError(
        f"{name}: the series cannot converge: the discount, {discount:.6g}, times the spectral radius of the attention "
        f"weights, about {worst / discount:.6g} (norms bound it by {float(bound[member, head]) / discount:.6g}), is "
        f"not below 1 in member {member}, head {head}; take a discount below {discount / worst:.6g}, or a normaliser "
        f"such as 'frobenius' (or check=False, where negative weights are known to make it converge)"
    )


def _by_steps(operator: AttentionOperator, like: Tensor) -> Tensor:
    """An upper bound of the radius of |A|, and so of that of A, ``[M, H]``."""
    members, size = operator.members, operator.magnitude()
    x = like.new_ones(operator.num_targets, like.shape[1], 1)
    total = like.new_zeros(members.count, like.shape[1])  # logarithm of what all steps do to the vector
    least = torch.full_like(total, float("inf"))
    floor = torch.finfo(like.dtype).tiny ** 0.5
    for steps in (_STEPS, 2 * _STEPS):
        start, growth = x, torch.zeros_like(total)
        for _ in range(_STEPS):
            x = size.matmul(x)
            norm = members.max(x[..., 0]).clamp(min=0.0)
            growth += norm.log()
            x = x / members.spread(torch.where(norm > 0, norm, 1)).unsqueeze(-1)
            # A larger vector keeps the bounds, and a part that vanished beside a large one would not be seen again.
            x = torch.where(x > 0, x.clamp(min=floor), x)
        total += growth
        # |A|^k 1 has the norm of |A|^k, which is no smaller than the k-th power of the radius.
        least = torch.minimum(least, (total / steps).exp())
        # Collatz & Wielandt: nor is the largest quotient of a positive vector after and before. Where the vector is 0,
        # walks end, so that nothing there is part of a cycle.
        quotient = torch.where(x > 0, x / start, 0)
        most = members.max(quotient[..., 0]).clamp(min=0.0)
        least = torch.minimum(least, ((most.log() + growth) / _STEPS).exp())
    return least


def _by_squares(operator: AttentionOperator, factor: Tensor, radius: Tensor, like: Tensor) -> Tensor:
    """Closer bounds of the members and heads that others leave at 1 or above, by the norm of :math:`A^{1024}`."""
    members = operator.members
    size = int(members.ptr.diff().max())
    if size > _SMALL:
        return radius
    undecided = ~(radius < 1)
    power = dense_blocks(operator, Padded(members, size), like.shape[1], like.dtype)[undecided].double()
    scale = power.new_zeros(power.shape[0])  # logarithm of what the power has been divided by
    for step in range(_SQUARES + 1):
        power = power @ power if step else power
        norm = power.abs().sum(-1).amax(-1)
        scale = 2 * scale + norm.log()
        power = power / torch.where(norm > 0, norm, 1).reshape(-1, 1, 1)
    found = (scale / 2**_SQUARES).exp() * (1 + size * torch.finfo(like.dtype).eps)  # rounding of the sums
    return radius.index_put((undecided,), torch.minimum(radius[undecided], factor[undecided] * found.to(like.dtype)))
