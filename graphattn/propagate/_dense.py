"""The operator as a matrix for each member and head, where members are small."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.graph.members import Members
from graphattn.propagate.operator import AttentionOperator

__all__ = ["Padded", "dense_blocks"]


class Padded:
    """Rows of members brought to one size.

    Args:
        members: Which rows belong together.
        size: Rows of the largest member.
    """

    def __init__(self, members: Members, size: int) -> None:
        self.count, self.size = members.count, size
        self._member = members.member
        self.local = torch.arange(self._member.shape[0], device=self._member.device) - members.ptr[self._member]

    def pad(self, x: Tensor) -> Tensor:
        """``[N, H, D]`` to ``[M, H, n, D]``, 0 where a member has fewer rows."""
        out = x.new_zeros(self.count, self.size, *x.shape[1:])
        return out.index_put_((self._member, self.local), x).transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`pad`."""
        return x.transpose(1, 2)[self._member, self.local]


@torch.no_grad()
def dense_blocks(operator: AttentionOperator, padded: Padded, heads: int, dtype: torch.dtype) -> Tensor:
    """The attention matrix of each member and head, ``[M, H, n, n]``: its product with the unit vectors, which all
    members have at the same time."""
    local = padded.local
    unit = torch.zeros(local.shape[0], 1, padded.size, dtype=dtype, device=local.device)
    unit.scatter_(2, local.reshape(-1, 1, 1), 1.0)
    return padded.pad(operator.matmul(unit.expand(-1, heads, -1).contiguous()))
