"""Which tokens attention makes central: Katz, PageRank, Perron vectors and expected visits of any edge weights.

An edge of weight ``w`` from source to target says that the target reads the source. ``of="sources"`` asks how much a
token *is read*, by tokens that are read themselves: NetworkX's centralities of the graph whose edges point from the
reader to what it reads. ``of="targets"`` asks how much a token *reads*: those of :meth:`TokenGraph.to_networkx`, and
the row sums of Roffo et al. (arXiv 2603.00175). Everything is computed in float64, for each head and each entry of
leading dimensions; members of a batch do not mix. Weights must not be negative.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.members import Members
from graphattn.propagate import EdgeOperator, PersonalizedPageRank, Resolvent
from graphattn.propagate.eigenvector import dominant_eigenvector

__all__ = ["Side", "eigenvector", "expected_visits", "katz", "leak", "pagerank"]

Side = Literal["sources", "targets"]
_TOLERANCE = 1e-12
_DENSE = 128  # tokens
_SQUARINGS = 40


def katz(
    graph: TokenGraph,
    weights: Tensor,
    alpha: float = 0.1,
    beta: float | Tensor = 1.0,
    *,
    of: Side = "sources",
    normalized: bool = True,
) -> Tensor:
    """Katz's index: :math:`c = (I - \\alpha A^T)^{-1} \\beta`, walks of all lengths that end at a token (L. Katz 1953).

    Args:
        graph: A square graph without leading dimensions.
        weights: ``[E]``, ``[E, H]`` or ``[..., E, H]``, in the graph's edge order.
        alpha: Discount of a step.
        beta: What each token has without being read; a number or ``[N]``.
        of: See the module; ``"targets"`` takes A for its transpose.
        normalized: Divide by the Euclidean norm of each member, as NetworkX does.

    Returns:
        ``[..., N, H]`` (``[N]`` for weights ``[E]``).

    Raises:
        ArgumentError: If arguments do not fit, or the series cannot converge: the text names its spectral radius.
    """
    call = _Call(graph, weights, of)
    start = torch.as_tensor(beta, dtype=torch.float64, device=graph.device).expand(graph.num_tokens)
    found = call.solve(Resolvent(alpha, tolerance=_TOLERANCE), call.rows(start))
    return call.unfold(call.unit(found) if normalized else found)


def pagerank(graph: TokenGraph, weights: Tensor, alpha: float = 0.85, personalization: Tensor | None = None) -> Tensor:
    """PageRank of a walk that goes from a reader to what it reads, in proportion to the weights (Page et al. 1999).

    It follows an edge with probability ``alpha``, else starts anew; where a token reads nobody, it starts anew. Solved
    to a relative residual of 1e-12, not iterated.

    Args:
        graph: A square graph without leading dimensions.
        weights: ``[E]``, ``[E, H]`` or ``[..., E, H]``, in the graph's edge order; rows need not sum to one.
        alpha: Probability of going on, in [0, 1).
        personalization: ``[N]`` where it starts, in proportion; default: anywhere.

    Returns:
        ``[..., N, H]`` (``[N]`` for weights ``[E]``), of sum 1 over each member.

    Raises:
        ArgumentError: If arguments do not fit.
    """
    if not 0.0 <= alpha < 1.0:
        raise ArgumentError(f"alpha must be in [0, 1), got {alpha}")
    call = _Call(graph, weights, "sources")
    start = torch.ones(graph.num_tokens) if personalization is None else personalization
    if start.shape != (graph.num_tokens,) or bool((start < 0).any()):
        raise ArgumentError(f"personalization must be [{graph.num_tokens}] and not negative, got {list(start.shape)}")
    call.make_stochastic()
    rows = call.rows(start.to(graph.device, torch.float64))
    if bool((call.members.spread(call.members.sum(rows)) == 0).any()):
        raise ArgumentError("personalization must be positive somewhere in each member, got only 0")
    # Walks from tokens that read nobody start anew like all others, so they only change the sum.
    found = call.solve(PersonalizedPageRank(1.0 - alpha, tolerance=_TOLERANCE), rows)
    return call.unfold(found / call.members.spread(call.members.sum(found)))


def eigenvector(
    graph: TokenGraph, weights: Tensor, *, of: Side = "sources", tolerance: float = 1e-10, max_products: int = 5000
) -> Tensor:
    """The Perron vector: the left one of the attention matrix (``of="sources"``) or the right one (``"targets"``).

    Up to 128 tokens, the limit of power steps from a vector of ones on :math:`A + c I`, which has the same vector and
    converges for periodic graphs too, by squaring that matrix 40 times; for larger graphs and batches,
    :func:`graphattn.propagate.dominant_eigenvector`.

    Args:
        graph: A square graph without leading dimensions.
        weights: ``[E]``, ``[E, H]`` or ``[..., E, H]``, in the graph's edge order.
        of: See the module.
        tolerance: For large graphs: of the residual, relative to the eigenvalue.
        max_products: For large graphs: give up, with a warning, after so many products.

    Returns:
        ``[..., N, H]`` (``[N]`` for weights ``[E]``), of Euclidean norm 1 over each member; 0 where no walk goes on for
        ever (nilpotent weights).

    Raises:
        ArgumentError: If arguments do not fit.
    """
    call = _Call(graph, weights, of)
    if graph.num_tokens <= _DENSE and graph.num_members == 1:
        return call.unfold(_by_squaring(call.dense()))
    found = dominant_eigenvector(call.operator, tolerance=tolerance, max_products=max_products)
    return call.unfold(found.vector.unsqueeze(-1))


def expected_visits(graph: TokenGraph, weights: Tensor, gamma: float = 0.95, start: Tensor | None = None) -> Tensor:
    """How often a walk comes to each token before it is absorbed: :math:`s^T (I - \\gamma A)^{-1}`, the rows of the
    fundamental matrix of an absorbing Markov chain (Roffo et al., arXiv 2603.00175).

    The walk goes from t to s with probability :math:`\\gamma A_{ts}` and is absorbed with probability :func:`leak`.
    Where a leak is negative (row sums above :math:`1 / \\gamma`, which the Frobenius norm allows), the numbers are the
    same sums of discounted walks but no expectations.

    Args:
        graph: A square graph without leading dimensions.
        weights: ``[E]``, ``[E, H]`` or ``[..., E, H]``, in the graph's edge order.
        gamma: Discount of a step.
        start: ``[N]`` where the walk starts; default: anywhere in its member, with equal probability.

    Returns:
        ``[..., N, H]`` (``[N]`` for weights ``[E]``).

    Raises:
        ArgumentError: If arguments do not fit, or the series cannot converge.
    """
    call = _Call(graph, weights, "sources")
    ones = torch.ones(graph.num_tokens, dtype=torch.float64, device=graph.device)
    if start is None:
        start = ones / call.members.spread(call.members.sum(ones))
    if start.shape != ones.shape:
        raise ArgumentError(f"start must be [{graph.num_tokens}], got {list(start.shape)}")
    return call.unfold(call.solve(Resolvent(gamma, tolerance=_TOLERANCE), call.rows(start.to(ones))))


def leak(graph: TokenGraph, weights: Tensor, gamma: float = 0.95) -> Tensor:
    """Probability of absorption at each token: :math:`1 - \\gamma \\sum_s A_{ts}`; negative where the weights are no
    transition probabilities.

    Args:
        graph: A square graph without leading dimensions.
        weights: ``[E]``, ``[E, H]`` or ``[..., E, H]``, in the graph's edge order.
        gamma: Discount of a step.

    Returns:
        ``[..., N, H]`` (``[N]`` for weights ``[E]``).
    """
    call = _Call(graph, weights, "targets")
    return call.unfold(1.0 - gamma * call.operator.row_sum().unsqueeze(-1))


def _by_squaring(matrix: Tensor) -> Tensor:
    """The limit of power steps on ``[heads, N, N]``: ``[N, heads, 1]``, of norm 1, or 0 for a nilpotent matrix."""
    count = matrix.shape[-1]
    size = torch.linalg.matrix_norm(matrix, keepdim=True)
    matrix = torch.where(size > 0, matrix / size, 0.0)
    walks = matrix
    for _ in range(max(count - 1, 1).bit_length()):
        walks = walks @ walks
        largest = walks.amax((1, 2), keepdim=True)
        walks = torch.where(largest > 0, walks / largest, 0.0)
    power = matrix + 0.25 * torch.eye(count, dtype=matrix.dtype, device=matrix.device)
    for _ in range(_SQUARINGS):
        power = power @ power
        power = power / power.amax((1, 2), keepdim=True)
    x = power.sum(2)
    x = x / x.norm(dim=1, keepdim=True)
    return torch.where(walks.amax((1, 2)).unsqueeze(1) > 0, x, 0.0).T.unsqueeze(-1)


class _Call:
    """Weights folded to ``[E, heads]`` in float64, as an operator along or against the edges."""

    def __init__(self, graph: TokenGraph, weights: Tensor, of: str) -> None:
        if of not in ("sources", "targets"):
            raise ArgumentError(f"of must be 'sources' or 'targets', got {of!r}")
        if not graph.is_square or graph.leading:
            raise ArgumentError(f"graph must be square and without leading dimensions, got {graph}")
        self._flat = weights.dim() == 1
        wide = weights.unsqueeze(-1) if self._flat else weights
        if wide.dim() < 2 or wide.shape[-2] != graph.num_edges:
            raise ArgumentError(f"weights must be [..., {graph.num_edges}, H], got {list(weights.shape)}")
        if bool((wide < 0).any()):
            raise ArgumentError(f"weights must not be negative, got {float(wide.min()):.3g}")
        self._shape, self._dtype = (*wide.shape[:-2], graph.num_tokens, wide.shape[-1]), weights.dtype
        self._weights = wide.detach().movedim(-2, 0).flatten(1).double()
        # In the caller's edge order, which transposing a pattern would change.
        edges = graph.edge_index.flip(0) if of == "sources" else graph.edge_index
        ptr = graph.target_ptr
        self._graph = TokenGraph.from_edge_index(edges, graph.num_tokens, ptr=ptr, validate=False)
        self.members = Members.of_targets(self._graph)
        self.operator = EdgeOperator(self._graph, self._weights)

    def make_stochastic(self) -> None:
        """Weights in proportion, of sum 1 for each token that reads (the walk goes against the edges)."""
        reader = self._graph.edge_index[0]
        total = torch.zeros(self._graph.num_tokens, self._weights.shape[1], dtype=torch.float64, device=reader.device)
        total = total.index_add(0, reader, self._weights)[reader]
        self._weights = torch.where(total > 0, self._weights / total, 0.0)
        self.operator = EdgeOperator(self._graph, self._weights)

    def dense(self) -> Tensor:
        """The matrix of each head, ``[heads, N, N]``."""
        source, target = self._graph.edge_index.long()
        count = self._graph.num_tokens
        flat = self._weights.new_zeros(count * count, self._weights.shape[1])
        return flat.index_add(0, target * count + source, self._weights).T.unflatten(1, (count, count))

    def rows(self, x: Tensor) -> Tensor:
        """``[N]`` as values of every head."""
        return x.view(-1, 1, 1).expand(-1, self._weights.shape[1], 1).contiguous()

    @torch.no_grad()
    def solve(self, propagator: torch.nn.Module, rows: Tensor) -> Tensor:
        return propagator(self.operator, rows)

    def norm(self, x: Tensor) -> Tensor:
        """Euclidean norm over its member, at every token."""
        return self.members.spread(self.members.sum(x.square()).sqrt())

    def unit(self, x: Tensor) -> Tensor:
        """Of norm 1 over each member."""
        size = self.norm(x)
        return torch.where(size > 0, x / size, 0.0)

    def unfold(self, x: Tensor) -> Tensor:
        lead, heads = self._shape[:-2], self._shape[-1]
        found = x[..., 0].unflatten(1, (*lead, heads)).movedim(0, -2).to(self._dtype)
        return found.squeeze(-1) if self._flat else found
