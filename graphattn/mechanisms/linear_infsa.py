"""Linear-InfSA: attention of rank one in linear time (Roffo et al., arXiv 2603.00175, 2026)."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.rules import Causal
from graphattn.mechanisms.base import check_rows, drop_seed
from graphattn.mechanisms.parts.infinite import InfiniteAttention
from graphattn.mechanisms.parts.rank_one import Pool, Side, check_choices, source_scores, target_rows

__all__ = ["LinearInfSA", "causal_linear_infsa", "linear_infsa", "source_scores"]


def linear_infsa(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: float | Tensor = 0.95,
    *,
    side: Side = "left",
    steps: int = 1,
    pool: Pool | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """Every target reads its sources in proportion to one score of each source, in time and memory of O(N + E').

    On a complete graph, with :math:`\\tilde q = q / \\sqrt D` and :math:`\\tilde k = k / \\sqrt D` (the released code,
    line by line; the equations of the paper could not be read, unverified):

    .. math::
        \\bar q = \\frac{\\sum_t \\lVert \\tilde q_t \\rVert \\tilde q_t}{\\sum_t \\lVert \\tilde q_t \\rVert +
        \\varepsilon}, \\qquad a_s = \\max(\\langle \\bar q, \\tilde k_s \\rangle, 0), \\qquad
        y_t = \\gamma \\frac{\\sum_s a_s v_s}{\\sum_s a_s + \\varepsilon}

    which is the same for all t. Without the maximum, a is one power step of the transposed scores, so it approximates
    their *left* Perron vector (which sources are central), not the right one, and a single step is no power iteration,
    as README and comments of the code call it. ``side="right"`` exchanges the roles, pools keys and scores queries,
    for the right one. How good either is depends on a dominant common direction; compare :func:`source_scores` with
    the eigenvectors.

    On other graphs (ours), a target's sums run over the sources that it reads, and the pooled query of source s over
    the tokens that s itself reads (E' edges; none are listed for complete and causal graphs and blocks). So a target
    learns of what it reads and what these read, nothing else: no member of another, and on a causal graph nothing of
    the future, see :func:`causal_linear_infsa`. Where sources are not the targets, the pooled query is over the targets
    that read s: targets that share a source learn of each other.

    Args:
        graph: Who may read whom.
        q: ``[..., T, H, D]``.
        k: ``[..., S, H, D]``.
        v: ``[..., S, H, C]``.
        gamma: Factor of the output: a number or a tensor ``[H]``.
        side: ``"left"`` or, where sources are the targets, ``"right"``.
        steps: Power steps, each with the scores before as weights; more than one where sources are the targets. As the
            maximum is taken of tokens and not of pairs, they lead to the Perron vector only where scores are mostly
            positive, and then one step is near it (standard normal q and k plus a mean, 10 seeds, cosine of a to the
            left vector after 1 and 5 steps: N = 64, D = 32, mean 0.3: 0.970, 0.966; N = 197, D = 64, mean 0.5: 0.9998,
            0.9999; to the right one 0.82 and 0.94).
        pool: ``"read"``: as above; ``"readers"``: over the targets that read s, which is the power step of the graph's
            own transposed scores, also where it leaks. Default: ``"read"`` on square graphs, for tokens that both ask
            and answer.
        dropout_p: Probability of dropping a source, for all of its readers at once.
        dropout_seed: See :func:`graphattn.attend`.
        eps: Added to the sums.
        backend: Of the sparse operations, see :func:`graphattn.attend`.

    Returns:
        ``[..., T, H, C]``; 0 for a target without edges, or all of whose scores are negative.

    Raises:
        ArgumentError: If shapes or values do not fit.
        ArgumentTypeError: If types, dtypes or devices do not fit.
    """
    options = side, steps, pool, dropout_p, dropout_seed, eps, backend
    if not isinstance(gamma, Tensor):
        if not isinstance(gamma, Real):
            raise ArgumentTypeError(f"gamma must be a number or a tensor, got {type(gamma).__name__}")
        return target_rows(graph, q, k, v, *options, factor=float(gamma), spread=True)
    rows = target_rows(graph, q, k, v, *options)
    rows = rows * gamma.to(rows.dtype).unsqueeze(-1)
    return rows.expand(*rows.shape[:-3], graph.num_targets, *rows.shape[-2:])


def causal_linear_infsa(
    q: Tensor, k: Tensor, v: Tensor, gamma: float | Tensor = 0.95, *, steps: int = 1, eps: float = 1e-6
) -> Tensor:
    """Linear-InfSA of a sequence, each token reading itself and what is before it, in two prefix sums.

    .. math::
        \\bar q_j = \\frac{\\sum_{i \\le j} e_i \\tilde q_i}{\\sum_{i \\le j} e_i + \\varepsilon},\\;
        e_i = \\lVert \\tilde q_i \\rVert, \\qquad a_j = \\max(\\langle \\bar q_j, \\tilde k_j \\rangle, 0), \\qquad
        y_i = \\gamma \\frac{\\sum_{j \\le i} a_j v_j}{\\sum_{j \\le i} a_j + \\varepsilon}

    A function of its own, and not Linear-InfSA under a mask: the published form pools the queries of the whole sequence
    and so cannot be causal, and its conversion of causal models leaks the future. Here a token is scored once, by the
    queries up to its own, and :math:`y_i` depends on nothing after i. It is :func:`linear_infsa` on
    :func:`graphattn.patterns.causal`, and on any graph with the same edges.

    Args:
        q: ``[..., N, H, D]``.
        k: ``[..., N, H, D]``.
        v: ``[..., N, H, C]``.
        gamma: Factor of the output: a number or a tensor ``[H]``.
        steps: Power steps, a prefix sum each.
        eps: Added to the sums.

    Returns:
        ``[..., N, H, C]``.

    Raises:
        ArgumentError: If shapes or values do not fit.
    """
    if not isinstance(q, Tensor) or q.dim() < 3:
        raise ArgumentError(f"q must be [..., N, H, D], got {list(q.shape) if isinstance(q, Tensor) else type(q)}")
    return linear_infsa(Causal(q.shape[-3], q.device), q, k, v, gamma, steps=steps, eps=eps)


class LinearInfSA(InfiniteAttention):
    """One score for each source, one power step (or some), O(N): see :func:`linear_infsa` for the equations.

    All tokens of a complete graph get the same step, so only a residual and the feed-forward network keep them
    distinct. Where the released code (giorgioroffo/infinite-self-attention, 0.1.0) differs: its decay has no gradient;
    masks are accepted and ignored, and there is no causal form, so that a converted causal model leaks the future (here
    the graph, and ``mask``, say who is read, and a causal graph is :func:`causal_linear_infsa`); and the vector it
    approximates is the left one, of one step.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        edge_width: Must be ``None``: scores belong to sources, so edge rows have no place.
        side: See :func:`linear_infsa`.
        steps: Power steps.
        gamma: Factor of the output before training.
        learn_gamma: Learn it, for each head.
        bias: Give the projections a bias.
        eps: Added to the sums.
        dropout: On the concatenated heads before the output projection.
        attention_dropout: On the scores: drops a source for all of its readers.
        backend: See :func:`linear_infsa`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        edge_width: int | None = None,
        *,
        side: Side = "left",
        steps: int = 1,
        gamma: float = 0.95,
        learn_gamma: bool = True,
        bias: bool = True,
        eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        if edge_width is not None:
            raise ArgumentError(f"edge_width must be None: LinearInfSA has no use for edge rows, got {edge_width}")
        check_choices(None, side, steps, None)
        super().__init__(
            width,
            heads,
            gamma=gamma,
            learn_gamma=learn_gamma,
            bias=bias,
            eps=eps,
            dropout=dropout,
            attention_dropout=attention_dropout,
            backend=backend,
        )
        self.side, self.steps = side, steps

    def forward(
        self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`~graphattn.mechanisms.Mechanism.forward`; the second result is ``None``.

        Args:
            x: ``[..., N, width]``.
            graph: Square graph over the N tokens.
            edge: Must be ``None``.
            mask: bool ``[..., N]``: the tokens that take part; others (padding) are not read, ask and read nothing.
        """
        check_rows(x, graph, self.width)
        if edge is not None:
            raise ArgumentError(f"edge must be None: LinearInfSA has no use for edge rows, got {list(edge.shape)}")
        q, k, v = self._project(x, mask)
        p, seed = drop_seed(self, self.attention_dropout, x)
        rows = target_rows(graph, q, k, v, self.side, self.steps, None, p, seed, self.eps, self.backend)
        rows = (rows * self.gamma().to(rows.dtype).unsqueeze(-1)).flatten(-2)
        if mask is not None:
            rows = rows.masked_fill(~mask.unsqueeze(-1), 0.0)
        if self.training and self.dropout.p > 0.0:
            rows = rows.expand(*x.shape[:-1], -1)
        # One row for all tokens is projected once.
        return self.out(self.dropout(rows)).expand(*x.shape[:-1], -1), None

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}, heads={self.heads}, side={self.side!r}, steps={self.steps}"
