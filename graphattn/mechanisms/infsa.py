"""Infinite self-attention (Roffo et al., "Self-Attention And Beyond the Infinite", arXiv 2603.00175, 2026)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphattn._inputs import autocast, check_inputs
from graphattn._watch import Seen, tell, watching
from graphattn.attention import AttentionOutput, attend, edge_weights
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.mechanisms.base import Transform, check_edge, check_rows, drop_seed
from graphattn.mechanisms.parts.infinite import InfiniteAttention
from graphattn.normalize import Frobenius
from graphattn.propagate import Katz, Neumann, OneHop, Propagator
from graphattn.propagate.relu import is_dense, relu_hop

__all__ = ["InfSA", "infsa"]


def infsa(
    graph: TokenGraph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gamma: float | Tensor = 0.95,
    *,
    hops: int | None = 1,
    edge_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
    need_weights: bool = False,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor | AttentionOutput:
    """Discounted walks along rectified scores over their Frobenius norm, on any token graph.

    .. math::
        A^+_{ts} = \\max\\Big(\\tfrac{1}{D} q_t^\\top k_s + b_{ts},\\, 0\\Big), \\qquad
        \\hat A = \\frac{A^+}{\\lVert A^+ \\rVert_F + \\varepsilon}, \\qquad
        y = \\sum_{\\tau = 1}^{T} (\\gamma \\hat A)^\\tau v

    (eq. 1, and eqs. 2-4 for T = 1, T hops with one operator, and T infinite: :math:`(I - \\gamma \\hat A)^{-1} - I`;
    the body of the paper could not be read, so numbers and signs of the equations are from its README, released code
    and abstract, unverified.) The norm is over the edges of a member and head: members of a batch, copies of a graph
    and tokens that are no edge's end take no part in each other's. Its value below 1 bounds the spectral radius, so
    that the sum converges for every :math:`\\gamma \\le 1`, where edges are single. A row of zeros in ``q`` or ``k``
    has no weight and no part in the norm. Rows need not sum to 1, and the output shrinks as one over the root of the
    number of targets.

    Complete and causal graphs, and blocks, take :func:`graphattn_kernels.relu_attention`, which makes nothing of the
    size of the edges, for any number of hops; other graphs, a bias, dropout, weights, and a backend by name take the
    edges one by one.

    Args:
        graph: Who may read whom; square unless ``hops=1``.
        q: ``[..., T, H, D]``.
        k: ``[..., S, H, D]``.
        v: ``[..., S, H, C]``.
        gamma: Discount of a hop, at most 1; a number or a tensor ``[H]``, whose gradient is exact.
        hops: T; ``None``: all walks, to a tolerance (:class:`graphattn.propagate.Katz`).
        edge_bias: ``[E]``, ``[E, H]`` or ``[..., E, H]``: b, added before the maximum (ours).
        dropout_p: Probability of dropping a weight, the same at every hop.
        dropout_seed: See :func:`graphattn.attend`.
        need_weights: Return ``[..., E, H]``, the weights :math:`\\gamma \\hat A` of one hop before dropout, too.
        eps: Added to the norm.
        backend: See :func:`graphattn.attend`.

    Returns:
        ``[..., T, H, C]``, or an :class:`~graphattn.AttentionOutput` with the weights.

    Raises:
        ArgumentError: If shapes or values do not fit.
    """
    if isinstance(gamma, Tensor) and gamma.dim() > 1:
        raise ArgumentError(f"gamma must be a number or a tensor [H], got {list(gamma.shape)}")
    mover, scale = _mover(hops, gamma), 1.0 / max(1, q.shape[-1])
    simple = edge_bias is None and dropout_p == 0.0 and not need_weights and backend == "auto"
    weights = None
    q, k, v, edge_bias = autocast(q, k, v, edge_bias)  # type: ignore[assignment]
    if simple and hops == 1 and is_dense(graph):  # in the layout of the caller: nothing is folded
        check_inputs(graph, q, k, v, "relu_dot")
        if watching():  # beside the call, which takes its usual way
            with torch.no_grad():
                seen = edge_weights(graph, q, k, score="relu_dot", normalizer=Frobenius(eps), scale=scale)
            tell(Seen(graph, q, k, seen))
        out, _ = relu_hop(graph, q, k, v, scale=scale, eps=eps)
    else:
        with torch.autocast(v.device.type, enabled=False):  # hops add up in the dtype that attend chooses
            found = attend(
                *(graph, q, k, v),
                score="relu_dot" if edge_bias is None else "dot",
                normalizer=Frobenius(eps) if edge_bias is None else _Rectified(eps),
                propagator=mover,
                edge_bias=edge_bias,
                scale=scale,
                dropout_p=dropout_p,
                dropout_seed=dropout_seed,
                need_weights=need_weights,
                backend=backend,
            )
        out, weights = (found.out, found.weights) if isinstance(found, AttentionOutput) else (found, None)
    # A number stays one: as a tensor, it would have to be copied to the device, and wait for it.
    if hops == 1:
        out = out * (gamma.to(out.dtype).unsqueeze(-1) if isinstance(gamma, Tensor) else gamma)
    if weights is None:
        return out
    if not isinstance(gamma, Tensor):
        return AttentionOutput(out, weights * gamma)
    if graph.leading_axes.endswith("h") and gamma.dim() == 1:  # each edge is of one head
        gamma = gamma.expand(v.shape[-2])[graph.edge_index[1] // graph.num_targets % v.shape[-2]].unsqueeze(-1)
    return AttentionOutput(out, weights * gamma.to(weights.dtype))


def _mover(hops: int | None, gamma: float | Tensor) -> Propagator:
    if hops is None:
        return Katz(gamma)
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 1:
        raise ArgumentError(f"hops must be a positive number, or None for all, got {hops!r}")
    return OneHop() if hops == 1 else Neumann(hops, gamma)


class _Rectified(Frobenius):
    """The maximum with 0 first: of a score with its bias, where that of ``"relu_dot"`` is of the product alone."""

    def forward(self, graph: TokenGraph, scores: Tensor, backend: str = "auto") -> Tensor:
        """See :meth:`Normalizer.forward`."""
        return super().forward(graph, scores.relu(), backend)


class InfSA(InfiniteAttention):
    """Rectified scores over their Frobenius norm, one hop, T hops or all walks: see :func:`infsa` for the equations.

    Where the released code (giorgioroffo/infinite-self-attention, 0.1.0) differs: its decay is read as a number and has
    no gradient, though it is declared learnable, and is one for all heads (here one for each, learned); it accepts
    masks and ignores them (here the graph, and ``mask``, say who is read, and the norm is over what is left); and its
    conversion of causal models reads the future (here a causal graph lets no later value through). The norm of a causal
    graph is still one number of the whole sequence, so that later scores rescale earlier outputs: where not even that
    may be, as in :class:`~graphattn.models.sequence.CausalTransformer`, which refuses it, take
    :class:`~graphattn.mechanisms.linear_infsa.LinearInfSA`. Series over hops (eqs. 3-4) are one layer's; a
    stack of one-hop layers with residuals computes products instead.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        edge_width: Channels of an edge row; ``None``: no edge rows. They add one number for each head to the score
            (ours).
        hops: Hops of a layer, 1 in the released code; ``None``: all walks.
        gamma: Discount of a hop before training.
        learn_gamma: Learn it, for each head.
        rescale: Multiply the output by the root of the member's number of tokens, so that its size does not depend on
            it (ours).
        bias: Give the projections a bias.
        eps: Added to the norm.
        dropout: On the concatenated heads before the output projection.
        attention_dropout: On the weights; lists every edge of a dense graph.
        backend: See :func:`infsa`.
    """

    takes_transform = True

    def __init__(
        self,
        width: int,
        heads: int,
        edge_width: int | None = None,
        *,
        hops: int | None = 1,
        gamma: float = 0.95,
        learn_gamma: bool = True,
        rescale: bool = False,
        bias: bool = True,
        eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        _mover(hops, gamma)  # refuses what it cannot take
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
        self.hops, self.rescale = hops, rescale
        self.edge = nn.Linear(edge_width, heads, bias=False) if edge_width else None

    def reset_parameters(self) -> None:
        """Draw all learnable parameters anew."""
        super().reset_parameters()
        if self.edge is not None:
            self.edge.reset_parameters()

    def forward(
        self,
        x: Tensor,
        graph: TokenGraph,
        edge: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        transform: Transform | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`~graphattn.mechanisms.Mechanism.forward`; the second result is ``None``.

        Args:
            x: ``[..., N, width]``.
            graph: Square graph over the N tokens.
            edge: ``[E, edge_width]``.
            mask: bool ``[..., N]``: the tokens that take part; others (padding) are not read, read nothing and do not
                count in the norm. Not with edge rows.
            transform: See :class:`~graphattn.mechanisms.Mechanism`.
        """
        check_rows(x, graph, self.width, transform)
        check_edge(edge, self.edge)
        if edge is not None and mask is not None:
            raise ArgumentError("mask and edge rows do not go together; leave masked tokens out of the graph")
        q, k, v = self._project(x, mask)
        if transform is not None:
            q, k, v = transform(q, k, v)
        p, seed = drop_seed(self, self.attention_dropout, x)
        out = infsa(
            *(graph, q, k, v, self.gamma()),
            hops=self.hops,
            edge_bias=None if self.edge is None or edge is None else self.edge(edge),
            dropout_p=p,
            dropout_seed=seed,
            eps=self.eps,
            backend=self.backend,
        )
        assert isinstance(out, Tensor)
        if self.rescale:
            out = out * _root_of_tokens(graph, mask, out)
        return self.out(self.dropout(out.flatten(-2))), None

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}, heads={self.heads}, hops={self.hops}"


def _root_of_tokens(graph: TokenGraph, mask: Tensor | None, like: Tensor) -> Tensor:
    """Root of the number of tokens of each token's member, ``[..., N, 1, 1]``."""
    count = torch.ones(graph.num_targets, device=like.device) if mask is None else mask.to(torch.float32)
    members = Members(graph.target_ptr, graph.num_targets, 1, like.device)
    count = members.spread(members.sum(count.movedim(-1, 0))).movedim(0, -1)
    return count.sqrt()[..., None, None].to(like.dtype)
