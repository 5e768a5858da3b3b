"""Linear-InfSA: attention of rank one in linear time (Roffo et al., arXiv 2603.00175, 2026)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graphattn._inputs import autocast, check_inputs
from graphattn.attention import propagate
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.graph.rules import Blocks, Causal, Complete
from graphattn.mechanisms._infinite import InfiniteAttention
from graphattn.mechanisms.base import check_rows, drop_seed
from graphattn.propagate.relu import of_one_size
from graphattn_kernels import rank_one_attention
from graphattn_kernels._random import check_dropout, dropout_scale
from graphattn_kernels._segment import accumulate_dtype

__all__ = ["LinearInfSA", "causal_linear_infsa", "linear_infsa", "source_scores"]

Side = Literal["left", "right"]
Pool = Literal["read", "readers"]


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
        steps: Power steps, each with the scores before as weights; more than one where sources are the targets.
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
    """
    rows = _rows(graph, q, k, v, side, steps, pool, dropout_p, dropout_seed, eps, backend)
    factor = gamma.to(rows.dtype).unsqueeze(-1) if isinstance(gamma, Tensor) else gamma
    return (rows * factor).expand(*rows.shape[:-3], graph.num_targets, *rows.shape[-2:])


def causal_linear_infsa(
    q: Tensor, k: Tensor, v: Tensor, gamma: float | Tensor = 0.95, *, steps: int = 1, eps: float = 1e-6
) -> Tensor:
    """Linear-InfSA of a sequence, each token reading itself and what is before it, in two prefix sums.

    .. math::
        \\bar q_j = \\frac{\\sum_{i \\le j} \\lVert \\tilde q_i \\rVert \\tilde q_i}{\\sum_{i \\le j} \\lVert \\tilde q_i
        \\rVert + \\varepsilon}, \\qquad a_j = \\max(\\langle \\bar q_j, \\tilde k_j \\rangle, 0), \\qquad
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
    return linear_infsa(Causal(q.shape[-3], q.device), q, k, v, gamma, steps=steps, eps=eps)


def source_scores(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    *,
    side: Side = "left",
    steps: int = 1,
    pool: Pool | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """The scores a of :func:`linear_infsa`, ``[..., S, H]``, in float32 for half types; arguments as there."""
    _check(graph, side, steps, pool)
    check_inputs(graph, q, k, None, "rank_one")
    with torch.autocast(q.device.type, enabled=False):
        dtype, scale = accumulate_dtype(q.dtype), max(1, q.shape[-1]) ** -0.5
        asks, answers = (q, k) if side == "left" else (k, q)  # pooled, and scored
        asks, answers = asks.to(dtype) * scale, answers.to(dtype) * scale
        over = graph.T if (pool or _default_pool(graph)) == "readers" else graph
        weights = torch.linalg.vector_norm(asks, dim=-1)
        for _ in range(steps):
            rows, total = _weighted(over, weights, asks, backend)
            pooled = rows / (total + eps).unsqueeze(-1)
            weights = torch.einsum("...nhd,...nhd->...nh", pooled.expand(answers.shape), answers).relu()
    return weights


def _rows(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    side: Side,
    steps: int,
    pool: Pool | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
    eps: float,
    backend: str,
) -> Tensor:
    """What targets read, before gamma: ``[..., T, H, C]``, or ``[..., 1, H, C]`` where it is one row for all."""
    _check(graph, side, steps, pool)
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]
    check_inputs(graph, q, k, v, "rank_one")
    check_dropout(dropout_p, dropout_seed, v.device)
    if side == "left" and steps == 1 and dropout_p == 0.0 and isinstance(graph.pattern, Complete | Blocks):
        return _fused(graph, q, k, v, eps)
    scores = source_scores(graph, q, k, side=side, steps=steps, pool=pool, eps=eps, backend=backend)
    with torch.autocast(v.device.type, enabled=False):
        values = v.to(scores.dtype)
        kept = scores
        if dropout_p > 0.0 and dropout_seed is not None:
            every = torch.arange(scores.numel() // max(1, scores.shape[-1]), device=v.device)
            kept = scores * dropout_scale(dropout_seed, every, scores.shape[-1], dropout_p, scores.dtype).view_as(scores)
        rows, total = _weighted(graph, kept, values, backend)
        if kept is not scores:
            _, total = _weighted(graph, scores, values[..., :0], backend)
        return (rows / (total + eps).unsqueeze(-1)).to(v.dtype)


def _fused(graph: TokenGraph, q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """One row for each member, by the operation that reads its inputs once; spread over the member's targets."""
    leading, members, options = v.shape[:-3], graph.num_members, {"scale": 1.0 / max(1, q.shape[-1]), "eps": eps}
    if of_one_size(graph):
        count = leading.numel() * members
        q, k, v = (x.reshape(count, x.shape[-3] // max(1, members), *x.shape[-2:]) for x in (q, k, v))
        rows = rank_one_attention(q, k, v, **options).unsqueeze(1)
        if members == 1:
            return rows.unflatten(0, leading) if leading else rows
        rows = rows.expand(-1, graph.num_targets // members, -1, -1)
        return rows.reshape(*leading, graph.num_targets, *rows.shape[-2:])
    heads = v.shape[-2]
    if leading:  # entries that share the graph are more heads
        q, k, v = (x.flatten(0, -4).transpose(0, 1).flatten(1, 2) for x in (q, k, v))
    rows = rank_one_attention(q, k, v, target_ptr=graph.target_ptr, source_ptr=graph.source_ptr, **options)
    rows = Members.of_targets(graph).spread(rows)
    return rows.unflatten(1, (-1, heads)).transpose(0, 1).unflatten(0, leading) if leading else rows


def _weighted(graph: TokenGraph, weights: Tensor, rows: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Sums of ``weights [..., S, H]`` times ``rows [..., S, H, C]``, and of weights, over what each target reads:
    ``[..., T, H, C]`` and ``[..., T, H]``, with 1 for T where it is the same for all."""
    rule = graph.pattern
    if isinstance(rule, Complete):
        return torch.einsum("...nh,...nhc->...hc", weights, rows).unsqueeze(-3), weights.sum(-2, keepdim=True)
    both = torch.cat([weights.unsqueeze(-1) * rows, weights.unsqueeze(-1)], -1)
    if type(rule) is Causal:
        both = both.cumsum(-3)
    elif isinstance(rule, Blocks):
        sums = Members.of_sources(graph).sum(both.movedim(-3, 0))
        both = Members.of_targets(graph).spread(sums).movedim(0, -3)
    else:
        both = propagate(graph, both.new_ones(graph.num_edges), both, backend=backend)
    return both[..., :-1], both[..., -1]


def _default_pool(graph: TokenGraph) -> Pool:
    return "read" if graph.is_square else "readers"


def _check(graph: TokenGraph, side: str, steps: int, pool: str | None) -> None:
    if side not in ("left", "right"):
        raise ArgumentError(f"side must be 'left' or 'right', got {side!r}")
    if pool not in (None, "read", "readers"):
        raise ArgumentError(f"pool must be 'read', 'readers' or None, got {pool!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"steps must be a positive number, got {steps!r}")
    if side == "right" and pool == "readers":
        raise ArgumentError("pool must be 'read' for the right side, whose power step it is; got 'readers'")
    if not graph.is_square and (side == "right" or steps > 1 or pool == "read"):
        raise ArgumentError(
            "side='right', steps above 1 and pool='read' need a graph whose sources are its targets, got "
            f"{graph.num_targets} targets and {graph.num_sources} sources"
        )


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
        _check(Complete(1, 1, device=None), side, steps, None)
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
        rows = _rows(graph, q, k, v, self.side, self.steps, None, p, seed, self.eps, self.backend)
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
