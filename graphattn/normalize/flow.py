"""Two-sided: sources compete for targets, and targets for sources."""

from __future__ import annotations

from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.graph.rules import Causal
from graphattn.normalize.base import NORMALIZERS, Normalizer
from graphattn_kernels import Structure, segment_sum, spread

__all__ = ["Flow"]


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
        ArgumentError: If an argument is not positive, or the graph is :func:`~graphattn.patterns.causal`.
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
        if isinstance(graph.pattern, Causal):
            raise ArgumentError("normalizer 'flow' would leak the future on a causal graph: it sums over later targets")
        by_target, by_source = graph.structure, graph.structure.T
        targets, sources = Members.of_targets(graph), Members.of_sources(graph)

        def share(x: Tensor, structure: Structure) -> Tensor:
            total = segment_sum(structure, x, backend=backend).clamp(min=self.floor)
            return x / spread(structure, total, backend=backend)

        of_target = share(scores, by_target)
        inflow = segment_sum(by_target, share(scores, by_source), backend=backend)
        outflow = segment_sum(by_source, of_target, backend=backend)
        if self.clamp is not None:
            outflow = outflow.clamp(-self.clamp, self.clamp)
        count_t, count_s = (m.ptr.diff().to(scores.dtype).unsqueeze(1) for m in (targets, sources))
        gate = (inflow * targets.spread(count_t / count_s.clamp(min=1), backend)).sigmoid()
        size = (outflow - sources.spread(sources.max(outflow), backend)).exp()
        competition = size * sources.spread(count_s / sources.sum(size, backend), backend)
        return of_target * spread(by_target, gate, backend=backend) * spread(by_source, competition, backend=backend)

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"floor={self.floor:g}, clamp={self.clamp}"
