"""Two-sided: sources compete for targets, and targets for sources."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.normalize.base import NORMALIZERS, Normalizer
from graphattn_kernels import segment_sum, spread

__all__ = ["Flow"]

_Product = Callable[[Tensor], Tensor]


@NORMALIZERS.register("flow")
class Flow(Normalizer):
    """Flow conservation at both ends of an edge, for scores that are not negative.

    .. math::
        I_t = \\sum_s s_{ts}, \\quad O_s = \\sum_t s_{ts}, \\quad
        \\hat I_t = \\sum_s s_{ts} / O_s, \\quad \\hat O_s = \\sum_t s_{ts} / I_t, \\\\
        w_{ts} = \\sigma(\\hat I_t\\, T / S)\\; \\frac{s_{ts}}{I_t}\\; S \\operatorname{softmax}_s(\\hat O)_s

    Wu et al., "Flowformer" (ICML 2022), eqs. 4-8, written for a graph: sums run over a token's own edges, the softmax
    over the sources of a member, and T and S count the targets and sources of the member (the paper has the complete
    graph only). The sum over a source's out-edges lets a target know of later ones: on a causal graph, this normaliser
    leaks the future; the paper's causal form is another formula.

    Args:
        floor: The least that scores are divided by.
        clamp: Bound on :math:`\\hat O` (1 in the released vision code; on self-attention its mean is 1, so that bound
            flattens about half of all sources); ``None``: no bound, as in the paper.

    Raises:
        ArgumentError: If an argument is not positive, or the graph is known to be causal
            (:attr:`~graphattn.TokenGraph.known_causal`).
    """

    def __init__(self, floor: float = 1e-6, clamp: float | None = None) -> None:
        super().__init__()
        if not floor > 0:
            raise ArgumentError(f"floor must be positive, got {floor}")
        if clamp is not None and not clamp > 0:
            raise ArgumentError(f"clamp must be positive or None, got {clamp}")
        self.floor, self.clamp = floor, clamp

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """See :meth:`Normalizer.forward`."""
        self.check(graph)
        by_target, by_source = graph.structure, graph.structure.T

        def times(x: Tensor) -> Tensor:
            return segment_sum(by_target, scores * spread(by_source, x, backend=backend), backend=backend)

        def t_times(x: Tensor) -> Tensor:
            return segment_sum(by_source, scores * spread(by_target, x, backend=backend), backend=backend)

        at_target, at_source = self.factors(graph, times, t_times, scores, backend)
        return scores * spread(by_target, at_target, backend=backend) * spread(by_source, at_source, backend=backend)

    def check(self, graph: TokenGraph) -> None:
        """Raise if the graph is known to be causal."""
        if graph.known_causal:
            raise ArgumentError("normalizer 'flow' would leak the future on a causal graph: it sums over later targets")

    def factors(
        self, graph: TokenGraph, times: _Product, t_times: _Product, like: Tensor, backend: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        """What a score is multiplied with at its target ``[T, H]`` and at its source ``[S, H]``.

        Args:
            graph: The graph.
            times: The matrix of scores times ``[S, H]``, for each head.
            t_times: Its transpose times ``[T, H]``.
            like: A tensor ``[..., H]`` of the dtype.
            backend: For the sums over members.
        """
        targets, sources = Members.of_targets(graph), Members.of_sources(graph)
        into = times(like.new_ones(graph.num_sources * graph.num_copies, like.shape[-1])).clamp(min=self.floor)
        out = t_times(like.new_ones(graph.num_targets * graph.num_copies, like.shape[-1])).clamp(min=self.floor)
        inflow, outflow = times(1 / out), t_times(1 / into)
        if self.clamp is not None:
            outflow = outflow.clamp(-self.clamp, self.clamp)
        count_t, count_s = (m.ptr.diff().to(like.dtype).unsqueeze(1) for m in (targets, sources))
        gate = (inflow * targets.spread(count_t / count_s.clamp(min=1), backend)).sigmoid()
        size = (outflow - sources.spread(sources.max(outflow), backend)).exp()
        total = sources.sum(size, backend).clamp(min=1)  # less only where a member has no sources
        return gate / into, size * sources.spread(count_s / total, backend)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"floor={self.floor:g}, clamp={self.clamp}"
