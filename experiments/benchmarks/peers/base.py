"""What a peer is: a library's way to compute a workload."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from experiments.benchmarks.workloads import Workload

__all__ = ["Call", "Peer", "Unsupported"]

Call = Callable[[], Tensor]


class Unsupported(Exception):
    """The peer cannot compute this workload; the text says why, and becomes a row of the table."""


class Peer:
    """One way to compute attention. Nothing of it is imported before :meth:`build`."""

    name: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]
    """The workloads that it is for; of others there is no row."""
    backward: ClassVar[bool] = True
    """Whether gradients flow."""
    compiles: ClassVar[bool] = False
    """Whether the first call compiles for seconds: such peers are called once ahead of all timing."""
    note: ClassVar[str] = ""
    """What a reader of its numbers must know."""

    def applies(self, work: Workload) -> bool:
        """Whether it makes sense here at all."""
        return True

    def build(self, work: Workload) -> Call:
        """Prepare (graph formats, masks: not timed) and return the call that is timed.

        The call takes nothing and returns ``[..., N, H, D]`` from ``work``'s own tensors, so that gradients with
        respect to them flow through every copy and layout change that the library needs.

        Raises:
            ImportError: If the library is missing.
            Unsupported: If it cannot compute this workload.
        """
        raise NotImplementedError
