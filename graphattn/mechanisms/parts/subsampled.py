"""What draws sub-graphs while training: settings, the draw, and a switch for all of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.subsample import Drawn, Plan, draw_subgraph

__all__ = ["Subsampled", "sampling"]

SCHEMES = ("uniform", "local")


class Subsampled(nn.Module):
    """What draws sub-graphs while training: the settings, and the draw.

    Args:
        keep: See :class:`~graphattn.mechanisms.SSA`, as the other arguments.
        scheme: ``"uniform"`` or ``"local"``.
        sigma: Deviation of the jitter.
        minimum: Least number of sources.
        always: Tokens that are always read.
        keep_self: Whether tokens read themselves in any case.
        shape: Rows and columns of a grid of tokens.

    Raises:
        ArgumentError: If a value is out of range.
    """

    def __init__(
        self,
        keep: float = 0.25,
        scheme: str = "uniform",
        *,
        sigma: float | None = None,
        minimum: int = 8,
        always: int = 0,
        keep_self: bool | None = None,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if minimum < 1 or always < 0:
            raise ArgumentError(f"minimum must be 1 or more and always 0 or more, got {minimum} and {always}")
        self.minimum, self.always, self.keep_self = minimum, always, keep_self
        self.shape = None if shape is None else (int(shape[0]), int(shape[1]))
        self.generator: torch.Generator | None = None
        self.sampling: bool | None = None
        self.keep: float = 1.0
        self.scheme: str = SCHEMES[0]
        self.sigma: float | None = None
        self.set_scheme(keep, scheme, sigma)

    def set_scheme(self, keep: float | None = None, scheme: str | None = None, sigma: float | None = None) -> None:
        """Draw otherwise from now on; ``None``: as before."""
        if keep is not None:
            if not 0.0 < keep <= 1.0:
                raise ArgumentError(f"keep must be a share above 0, 1 at most, got {keep}")
            self.keep = keep
        if scheme is not None:
            if scheme not in SCHEMES:
                raise ArgumentError(f"scheme must be one of {SCHEMES}, got {scheme!r}")
            self.scheme = scheme
        if sigma is not None:
            if not sigma >= 0.0:
                raise ArgumentError(f"sigma must be 0 or more, got {sigma}")
            self.sigma = sigma

    @property
    def setting(self) -> tuple[float, str, float | None]:
        """What :meth:`set_scheme` sets."""
        return self.keep, self.scheme, self.sigma

    @property
    def draws(self) -> bool:
        """Whether the next call draws a sub-graph."""
        return self.keep < 1.0 and (self.training if self.sampling is None else self.sampling)

    def draw(
        self,
        graph: TokenGraph,
        batch: int | None = None,
        *,
        edges: bool = False,
        share: bool = False,
        self_offset: int | None = None,
    ) -> Drawn:
        """A sub-graph, as a call draws it.

        Args:
            graph: The whole graph.
            batch: So many batch entries, each with its own.
            edges: Whether the numbers of its edges are wanted, too.
            share: Whether the probability of each edge is wanted, too.
            self_offset: Target t is source ``t + self_offset``; default: 0 for a square graph, none for others.
        """
        plan = Plan(self.scheme, self.keep, self.sigma, self.minimum, self.always, self.keep_self, self.shape)
        if self_offset is None and graph.is_square:
            self_offset = 0
        return draw_subgraph(
            *(graph, plan, batch, self.generator), self_offset=self_offset, need_edges=edges, need_share=share
        )

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        sigma = "" if self.sigma is None else f", sigma={self.sigma:g}"
        return f"keep={self.keep:g}, scheme={self.scheme!r}{sigma}, minimum={self.minimum}, always={self.always}"


@contextmanager
def sampling(model: nn.Module, on: bool = True, generator: torch.Generator | None = None) -> Iterator[list[Subsampled]]:
    """Inside, all :class:`~graphattn.mechanisms.SSA` (and :class:`graphattn.conv.SSAConv`) of a model draw sub-graphs
    (or none does), in training and in evaluation.

    Args:
        model: Any module.
        on: Whether they draw.
        generator: Where they take chance from; one on the CPU gives the same sub-graphs on every device.

    Yields:
        The modules.

    Raises:
        ArgumentError: If the model has no SSA.
    """
    found = [module for module in model.modules() if isinstance(module, Subsampled)]
    if not found:
        raise ArgumentError(f"model must hold an SSA mechanism, {type(model).__name__} has none")
    before = [(module.sampling, module.generator) for module in found]
    for module in found:
        module.sampling, module.generator = on, generator
    try:
        yield found
    finally:
        for module, (was, source) in zip(found, before, strict=True):
            module.sampling, module.generator = was, source
