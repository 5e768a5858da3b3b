"""What the layers that choose edges by a connectivity predictor have in common: the choice, and what it learns from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphattn._fold import Fold
from graphattn.attention import edge_weights
from graphattn.backends.steps import edge_scores
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.batch import side_by_side
from graphattn.graph.best_edges import best_edges
from graphattn.graph.rules import Complete
from graphattn.graph.subsample import counts_kept
from graphattn.mechanisms.parts.connectivity_predictor import ConnectivityPredictor
from graphattn.score import resolve_score
from graphattn_kernels import segment_sum, spread

__all__ = ["LearnedChoice", "Reconstruction", "Seen", "check_budget", "is_complete", "products"]


class Reconstruction(NamedTuple):
    """What the predictor of one layer says, and what attention is.

    Args:
        layer: Name of the module.
        approximate: :math:`\\tilde A`, differentiable in the predictor's parameters alone: ``[..., H, T, S]`` over the
            rows that are not full, or ``[..., E, H]`` on a graph that is not complete.
        attention: The weights of attention over all candidates, of the same shape, detached.
        rows: How many rows of attention these are: of tokens, heads and members of the batch.
    """

    layer: str
    approximate: Tensor
    attention: Tensor
    rows: int


class Seen(NamedTuple):
    """One call of a layer, detached."""

    graph: TokenGraph
    q: Tensor
    k: Tensor
    tokens: Tensor | None


class LearnedChoice(nn.Module):
    """A layer whose attention is over the best candidates, as a predictor ranks them."""

    predictor: ConnectivityPredictor | None
    heads: int
    keep: float
    keys: int | None
    threshold: float | None
    keep_self: bool
    prefix_tokens: int = 0
    dense: bool = False  # attention over all candidates
    seen: list[Seen] | None = None  # where somebody wants to know them

    def look(self, graph: TokenGraph, q: Tensor, k: Tensor, tokens: Tensor | None = None) -> None:
        """Remember the call, if somebody wants to know."""
        if self.seen is not None:
            self.seen.append(Seen(graph, q.detach(), k.detach(), tokens))

    def among_edges(self, graph: TokenGraph, scores: Tensor) -> tuple[TokenGraph, Tensor]:
        """The best of the candidates by ``[..., E, H]``, see :func:`best_edges`.

        A graph with a leading dimension ``[B]`` is taken side by side: the result is over the tokens of all entries.
        """
        graph = side_by_side(graph)
        degree = graph.in_degree
        count = degree.clamp(max=self.keys) if self.keys else counts_kept(degree, self.keep)
        return best_edges(
            graph,
            scores.detach().movedim(-1, -2).flatten(0, -2),
            count,
            threshold=self.threshold,
            keep_self=self.keep_self,
            full_rows=self.prefix_tokens,
            heads=self.heads,
            axes="bh" if scores.dim() == 3 else "h",
        )

    def edge_ranking(self, graph: TokenGraph, q: Tensor, k: Tensor, tokens: Tensor | None) -> Tensor:
        """What ranks the candidates, ``[..., E, H]``, without gradient."""
        raise NotImplementedError

    def choose(self, graph: TokenGraph, q: Tensor, k: Tensor, *, tokens: Tensor | None = None) -> TokenGraph:
        """The graph that attention is computed on."""
        return self.among_edges(graph, self.edge_ranking(graph, q, k, tokens))[0]

    @torch.no_grad()
    def chosen(self, seen: Seen) -> Tensor:
        """What was chosen in one call: bool ``[..., T, S]`` over the rows that are not full, or ``[copies, E]`` on a
        graph that is not complete."""
        graph, q, k, tokens = seen
        if is_complete(graph):
            mask = self.choose(graph, q, k, tokens=tokens).to_dense()
            return mask[..., mask.shape[-2] - (graph.num_targets - self.prefix_tokens) :, :]
        scores = self.edge_ranking(graph, q, k, tokens)
        copies = scores.shape[:-2].numel() * self.heads
        mask = torch.zeros(copies * graph.num_edges, dtype=torch.bool, device=q.device)
        mask[self.among_edges(graph, scores)[1]] = True
        return mask.view(copies, graph.num_edges)

    def approximate(self, graph: TokenGraph, q: Tensor, k: Tensor, *, tokens: Tensor | None = None) -> Tensor:
        """:math:`\\tilde A` as it learns, of the shape that :class:`Reconstruction` says.

        Args:
            graph: Candidates.
            q: ``[B, N, H, D]`` or ``[N, H, D]``.
            k: The same.
            tokens: int64 ``[B, N]``: which of ``num_tokens`` each row is, where tokens were pruned.

        Raises:
            ArgumentError: If there is no predictor.
        """
        if self.predictor is None:
            raise ArgumentError("this layer has no predictor that could learn; it needs selector='predictor'")
        factors = self.predictor(q, k, graph, tokens=tokens)
        if is_complete(graph):
            return factors.dense()[..., self.prefix_tokens :, :]
        found = products(graph, *factors)
        if self.predictor.num_tokens is not None:
            return found
        # Rows of U B sum to 1 over all tokens; over the candidates they must be made to.
        fold = Fold(graph, tuple(q.shape[:-3]), self.heads)
        folded = fold.edges("scores", found, graph.num_edges)
        assert folded is not None
        total = spread(graph.structure, segment_sum(graph.structure, folded))
        return fold.unedges(folded / total.clamp_min(torch.finfo(folded.dtype).tiny))

    @torch.no_grad()
    def attention(self, graph: TokenGraph, q: Tensor, k: Tensor) -> Tensor:
        """The weights over all candidates, of the shape that :class:`Reconstruction` says, without edge rows."""
        if not is_complete(graph):
            return edge_weights(graph, q, k)
        with torch.autocast(q.device.type, enabled=False):
            wide = torch.promote_types(q.dtype, torch.float32)
            left, right = (x.to(wide).movedim(-2, -3) for x in (q[..., self.prefix_tokens :, :, :], k))
            return (left @ right.mT * q.shape[-1] ** -0.5).softmax(-1)

    def reconstruction(self, name: str, seen: Seen) -> Reconstruction:
        """What was predicted in one call, and what was true."""
        graph, q, k, tokens = seen
        prefix = self.prefix_tokens if is_complete(graph) else 0
        rows = q[..., 0].numel() // max(graph.num_targets, 1) * (graph.num_targets - prefix)
        found = self.approximate(graph, q, k, tokens=tokens)
        return Reconstruction(name, found, self.attention(graph, q, k), max(rows, 1))


def is_complete(graph: TokenGraph) -> bool:
    """Whether all pairs of tokens are candidates."""
    return isinstance(graph.pattern, Complete) and graph.target_ptr is None and not graph.leading


def products(graph: TokenGraph, q: Tensor, k: Tensor) -> Tensor:
    """``q_t . k_s`` of each edge, ``[..., E, H]``."""
    fold = Fold(graph, tuple(q.shape[:-3]), q.shape[-2])
    options: dict[str, Any] = {"edge_bias": None, "edge_gate": None, "clamp": None, "backend": "auto"}
    found = edge_scores(graph, fold, q, k, resolve_score("dot"), scale=1.0, **options)
    return fold.unedges(found.scores)


def check_budget(keep: float, keys: int | None) -> None:
    """Raise unless the number of keys makes sense."""
    if isinstance(keep, bool) or not 0.0 < keep <= 1.0:
        raise ArgumentError(f"keep must be a share in (0, 1], got {keep!r}; keys=... is a number of them")
    if keys is not None and (isinstance(keys, bool) or not isinstance(keys, int) or keys < 1):
        raise ArgumentError(f"keys must be a positive int, got {keys!r}")
