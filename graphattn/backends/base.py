"""What a backend of :func:`graphattn.attend` is, and the call that it may be asked to serve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from graphattn._fold import Fold
from graphattn.errors import BackendError
from graphattn.graph import TokenGraph
from graphattn.score import Score

__all__ = ["Backend", "Call", "Result", "reason_in"]

EdgeBias = Tensor | Callable[[Tensor, Tensor, Tensor], Tensor] | None


class Call(NamedTuple):
    """A call of attend that one fused operation can serve: a score that kernels know, softmax, one hop.

    See :func:`graphattn.attend` for the fields; everything is checked, and in one dtype.
    """

    graph: TokenGraph
    fold: Fold
    q: Tensor
    k: Tensor
    v: Tensor
    score: Score
    edge_bias: EdgeBias = None
    edge_gate: Tensor | None = None
    scale: float | None = None
    clamp: float | None = None
    dropout_p: float = 0.0
    dropout_seed: Tensor | None = None
    need_lse: bool = False
    need_product: bool = False

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.q.device

    @property
    def needs_grad(self) -> bool:
        """Whether a gradient may be asked for."""
        return torch.is_grad_enabled() and (self.q.requires_grad or self.k.requires_grad or self.v.requires_grad)


class Result(NamedTuple):
    """What a backend returns, in the layout of :class:`graphattn.AttentionOutput`."""

    out: Tensor
    lse: Tensor | None = None
    product: Tensor | None = None


class Backend(ABC):
    """One way to run a :class:`Call`."""

    name: str
    about: str
    """In a few words, for :func:`graphattn.explain`."""
    operation: str
    """What it calls, likewise."""

    def missing(self) -> str | None:
        """Why it cannot run on this machine at all; ``None``: it can."""
        return None

    @abstractmethod
    def reason(self, call: Call) -> str | None:
        """Why it cannot serve a call; ``None``: it can. Waits for the device only where it may."""

    @abstractmethod
    def run(self, call: Call) -> Result:
        """Serve a call for which there is no reason not to."""

    def __repr__(self) -> str:
        return f"<backend {self.name}: {self.about}>"


def reason_in(error: BackendError) -> str:
    """The reason in an error of the operations below, without the name and the advice that are for their callers."""
    text = str(error)
    return (text.partition("cannot run: ")[2] or text).partition("; use ")[0]
