"""What draws sub-graphs while training: settings, the draw, and a switch for all of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.order import bfs
from graphattn.graph.subsample import Drawn, Plan, draw_subgraph

__all__ = ["Measure", "Subsampled", "sampling"]

SCHEMES = ("uniform", "local", "pairs", "hops")
Measure = Callable[[TokenGraph], Tensor]
"""What a graph says of its tokens or edges."""

# Every layer asks the same of the same graph.
_KNOWN: WeakKeyDictionary[TokenGraph, dict[Measure, Tensor]] = WeakKeyDictionary()


class Subsampled(nn.Module):
    """What draws sub-graphs while training: the settings, and the draw.

    Args:
        keep: See :class:`~graphattn.mechanisms.SSA`, as the other arguments.
        scheme: ``"uniform"``, ``"local"``, ``"pairs"`` or ``"hops"``.
        sigma: Deviation of the jitter, or the distance over which weights fall by e.
        minimum: Least number of sources.
        always: Tokens that are always read.
        keep_self: Whether tokens read themselves in any case.
        shape: Rows and columns of a grid of tokens.
        positions: Of tokens along a graph.
        hops: Of edges.

    Raises:
        ArgumentError: If a value is out of range.
        ArgumentTypeError: If a number of tokens is no int.
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
        positions: Literal["bfs"] | Measure | None = None,
        hops: Measure | None = None,
    ) -> None:
        super().__init__()
        if not (isinstance(minimum, int) and isinstance(always, int)):
            raise ArgumentTypeError(f"minimum and always must be ints, got {minimum!r} and {always!r}")
        if minimum < 1 or always < 0:
            raise ArgumentError(f"minimum must be 1 or more and always 0 or more, got {minimum} and {always}")
        self.minimum, self.always, self.keep_self = minimum, always, keep_self
        self.shape = None if shape is None else (int(shape[0]), int(shape[1]))
        if positions is not None and positions != "bfs" and not callable(positions):
            raise ArgumentError(f"positions must be 'bfs' or a function of the graph, got {positions!r}")
        if hops is not None and not callable(hops):
            raise ArgumentTypeError(f"hops must be a function of the graph, got {type(hops).__name__}")
        if positions is not None and shape is not None:
            raise ArgumentError("shape and positions do not go together: both say where tokens stand")
        self.positions: Measure | None = _bfs_places if positions == "bfs" else positions  # type: ignore[assignment]
        self.hops = hops
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
        positions: Tensor | None = None,
        hops: Tensor | None = None,
    ) -> Drawn:
        """A sub-graph, as a call draws it.

        Args:
            graph: The whole graph.
            batch: So many batch entries, each with its own.
            edges: Whether the numbers of its edges are wanted, too.
            share: Whether the probability of each edge is wanted, too.
            self_offset: Target t is source ``t + self_offset``; default: 0 for a square graph, none for others.
            positions: Of this call; default: what :attr:`positions` says of the graph.
            hops: Likewise.

        Raises:
            ArgumentError: If sizes do not fit, or the scheme by hops has none.
            ArgumentTypeError: If positions or hops are no tensor.
        """
        plan = Plan(self.scheme, self.keep, self.sigma, self.minimum, self.always, self.keep_self, self.shape)
        if self.scheme == "local":
            if positions is not None and self.shape is not None:
                raise ArgumentError("shape and positions do not go together: both say where tokens stand")
            plan = plan._replace(positions=_measured("positions", positions, self.positions, graph))
        if self.scheme == "hops":
            plan = plan._replace(hops=_measured("hops", hops, self.hops, graph))
        if self_offset is None and graph.is_square:
            self_offset = 0
        return draw_subgraph(
            *(graph, plan, batch, self.generator), self_offset=self_offset, need_edges=edges, need_share=share
        )

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        sigma = "" if self.sigma is None else f", sigma={self.sigma:g}"
        return f"keep={self.keep:g}, scheme={self.scheme!r}{sigma}, minimum={self.minimum}, always={self.always}"


def _measured(name: str, given: Tensor | None, measure: Measure | None, graph: TokenGraph) -> Tensor | None:
    """What a call brought, else what the graph says, which is asked once."""
    if given is None and measure is not None:
        known: dict[Measure, Tensor] = {} if torch.compiler.is_compiling() else _KNOWN.setdefault(graph, {})
        if measure not in known:
            known[measure] = measure(graph)
        given = known[measure]
    if given is not None and not isinstance(given, Tensor):
        got = type(given).__name__
        raise ArgumentTypeError(f"{name} must be a tensor, or a function of the graph that gives one, got {got}")
    return given


def _bfs_places(graph: TokenGraph) -> Tensor:
    order = bfs(graph)
    return torch.empty(order.shape, device=order.device).scatter_(
        0, order, torch.arange(order.shape[0], device=order.device, dtype=torch.float32)
    )


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
