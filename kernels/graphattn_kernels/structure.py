"""How a graph reaches the kernels: two sorted views of the same edges, as plain tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphattn_kernels.errors import ArgumentError, ArgumentTypeError

__all__ = ["Structure", "View", "edges_as_sources"]


class View(NamedTuple):
    """The edges sorted by one of their ends, the *owner*; the other end is the *index*.

    Seen from the targets, ``owner`` is the target and ``index`` the source; seen from the sources, the reverse.
    """

    ptr: Tensor
    """``[N + 1]``: edges of owner ``n`` stand at ``ptr[n]:ptr[n + 1]``; N counts owners."""
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """``[E]``: the other end of each edge."""
    owner: Tensor
    """``[E]``: the owner of each edge, ascending."""
    edge_id: Tensor | None
    """``[E]``: where edge tensors hold this edge; ``None``: in this order."""

    @property
    def num_owners(self) -> int:
        """Number of owners, those without an edge included."""
        return self.ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.index.shape[0]


class Structure(NamedTuple):
    """A graph as the kernels see it: the forward pass walks ``by_target``, the backward pass both."""

    by_target: View
    by_source: View

    @property
    def T(self) -> Structure:
        """Sources and targets exchanged; edge tensors keep their order, nothing is copied."""
        return Structure(self.by_source, self.by_target)

    @property
    def num_targets(self) -> int:
        """Number of targets."""
        return self.by_target.num_owners

    @property
    def num_sources(self) -> int:
        """Number of sources."""
        return self.by_source.num_owners

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.by_target.num_edges


def edges_as_sources(structure: Structure) -> Structure:
    """The graph in which every edge is a token of its own, read by the edge's target alone; edges as before."""
    view = structure.by_target
    numbers = torch.arange(view.num_edges + 1, dtype=view.index.dtype, device=view.index.device)
    numbers, ptr = numbers[:-1], numbers
    target = view.owner
    if view.edge_id is not None:
        target = torch.empty_like(target).index_copy_(0, view.edge_id.long(), target)
    edge = numbers if view.edge_id is None else view.edge_id
    return Structure(View(view.ptr, edge, view.owner, view.edge_id), View(ptr, target, numbers, None))


# The arguments that stand for a Structure in an operator's schema, in the order of `flat`.
SCHEMA = (
    "Tensor t_ptr, Tensor t_index, Tensor t_owner, Tensor? t_edge, "
    "Tensor s_ptr, Tensor s_index, Tensor s_owner, Tensor? s_edge"
)
NUM_ARGS = 8


def flat(structure: Structure) -> tuple[Tensor | None, ...]:
    """The tensors of a structure in the order of :data:`SCHEMA`."""
    return (*structure.by_target, *structure.by_source)


def unflat(args: tuple[Tensor | None, ...]) -> Structure:
    """The inverse of :func:`flat`, with the arrays dense, as kernels read them; further arguments are ignored."""
    arrays = [x if x is None or x.is_contiguous() else x.contiguous() for x in args[:NUM_ARGS]]
    return Structure(View(*arrays[:4]), View(*arrays[4:]))  # type: ignore[arg-type]


def check_rows(name: str, rows: Tensor, size: int, what: str, *, dim: int | None = None) -> None:
    """Raise unless ``rows`` is a floating tensor with one row for each of ``size`` things."""
    if not isinstance(rows, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor, got {type(rows).__name__}")
    if not rows.is_floating_point():
        raise ArgumentTypeError(f"{name} must be a floating tensor, got {rows.dtype}")
    if dim is not None and rows.dim() != dim:
        raise ArgumentError(f"{name} must have {dim} dimensions, got shape {list(rows.shape)}")
    if rows.dim() == 0 or rows.shape[0] != size:
        raise ArgumentError(f"{name} must have one row for each {what} ({size}), got shape {list(rows.shape)}")
