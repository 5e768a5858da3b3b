"""Stochastically subsampled self-attention (Hussain, Zaki & Subramanian, "The Information Pathways Hypothesis:
Transformers are Dynamic Self-Ensembles", KDD 2023, arXiv 2306.01705)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import MECHANISMS, Mechanism, check_call
from graphattn.mechanisms.parts.subsampled import Measure, Subsampled, sampling

__all__ = ["SSA", "Subsampled", "sampling", "ssa"]


class SSA(Subsampled, Mechanism):
    """Any mechanism, on a sub-graph that is drawn anew in each call while training: a share of the sources stays.

    .. math:: I \\sim \\text{uniform over } m\\text{-subsets}, \\qquad
              O = \\operatorname{softmax}(Q K_I^\\top / \\sqrt d)\\, V_I

    Every token stays a target. Each layer, call and batch entry (or member of a ragged batch) draws its own. In
    evaluation the whole graph is read, unless :func:`sampling` says otherwise
    (:func:`graphattn.nn.self_ensemble` averages several such passes). No code of the paper was released:
    ``"uniform"`` is its unbiased scheme; ``"local"`` (jittered windows) is ours, the paper's algorithm could not be
    read (unverified), as is all of the handling of other graphs. ``"pairs"`` is the random mask of the authors' EGT
    (TensorFlow; a share of the pairs, before the softmax), which saves less; ``"hops"`` is ours.

    Graphs: complete, causal and blocks become short lists (:class:`~graphattn.graph.lists.ListGraph`), which attention
    reads without listing edges, or bits for ``"pairs"``; of any other graph, and for ``"hops"``, edges that were not
    drawn are left out, which waits for the device. Edge rows are those of the whole graph; edges that were not drawn
    get a new row of 0.

    Mechanisms: any that takes a graph with a leading batch dimension, as all of the library do, each on what was drawn:
    a graph window walks along drawn edges, and Sparsifiner chooses among them. Refused is one that is for complete
    graphs only (Sparsifiner with ``select="block"``), from which nothing can be left out.

    Unlike dropout of weights, what is left is normalised over again, and nothing is computed for what is left out.
    "Unbiased" is the sampling: the output is not (sums over I are, their ratio is not).

    Args:
        attention: The mechanism.
        keep: Share r of the sources that is kept, more than 0; 1: nothing is drawn.
        scheme: ``"uniform"``: all targets share one uniform subset. ``"local"``: targets in order, in windows; sources
            in an order jittered by ``sigma``, cut likewise; target window b reads source window b. ``"pairs"``: each
            edge by itself, with probability ``keep``. ``"hops"``: of each token's in-edges a share, without
            replacement, with weights exp(-hops / sigma); those of one hop in any case.
        sigma: Deviation of the jitter, in tokens (or cells); default: the size of a window. 0: plain windows. By hops:
            the distance over which the weight falls by e; default 1.
        minimum: Least number of sources, of each member.
        always: The first so many tokens (of each member) are always read: class tokens, virtual nodes.
        keep_self: Whether tokens read themselves in any case, where the graph has that edge; ``None``: where a row
            could be empty otherwise, which is any graph but complete ones and blocks.
        shape: Rows and columns, where tokens (without those always read) are a grid, for the local scheme.
        positions: Where tokens stand, for the local scheme: ``"bfs"`` (:func:`graphattn.graph.order.bfs`), or a
            function of the graph, called once for each, that gives floating ``[N]`` (a Laplacian eigenvector, say; it
            counts by rank, within each member), or ``[N, k]`` on complete and causal graphs. ``None``: by their number.
            A call may bring its own.
        hops: For the scheme by hops, a function of the graph, called once for each: the distance of each edge's source
            from its target, ``[E]``; negative or infinite: never read. A call may bring its own.

    Raises:
        ArgumentError: If a value is out of range, or the mechanism is for complete graphs only.
    """

    def __init__(self, attention: Mechanism, keep: float = 0.25, scheme: str = "uniform", **options: Any) -> None:
        super().__init__(keep, scheme, **options)
        if not isinstance(attention, nn.Module):
            raise ArgumentTypeError(f"attention must be a mechanism, got {type(attention).__name__}")
        if getattr(attention, "complete_only", False):
            raise ArgumentError(
                f"attention must take the graph that is drawn, but this {type(attention).__name__} is for complete "
                "graphs only (select='block'); take select='query'"
            )
        self.attention = attention

    @property
    def takes_transform(self) -> bool:  # type: ignore[override]
        """As the mechanism inside."""
        return self.attention.takes_transform

    @property
    def reads_row_by_row(self) -> bool:  # type: ignore[override]
        """As the mechanism inside."""
        return self.attention.reads_row_by_row

    def forward(
        self,
        x: Tensor,
        graph: TokenGraph,
        edge: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        hops: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Mechanism.forward`.

        Args:
            x: ``[..., N, width]``.
            graph: The whole graph.
            edge: Its edge rows.
            positions: Of this call, see the class.
            hops: Likewise.
            **options: For the mechanism inside.
        """
        if not self.draws:
            return self.attention(x, graph, edge, **options)
        measures = {"positions": positions, "hops": hops}
        out, step, number = self.on_subgraph(self.attention, x, graph, edge, measures, **options)
        if step is None or edge is None or number is None:
            return out, step
        shared = x.shape[:-2] if not graph.leading else ()
        flat = math.prod(edge.shape[:-1]) if edge.dim() > 2 else edge.shape[0] * math.prod(shared)
        step = step.new_zeros(flat, step.shape[-1]).index_copy(0, number, step)
        return out, step.reshape(*shared, -1, step.shape[-1])

    def on_subgraph(
        self,
        step: Callable[..., tuple[Tensor, Tensor | None]],
        x: Tensor,
        graph: TokenGraph,
        edge: Tensor | None,
        measures: Mapping[str, Tensor | None] | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What a step ``(x, graph, edge)`` makes on a sub-graph, drawn for it.

        Args:
            step: The mechanism inside, or a whole block around it.
            x: See :meth:`forward`.
            graph: The whole graph.
            edge: Its edge rows; the step gets those of the edges that were drawn.
            measures: ``positions`` and ``hops`` of this call, see :meth:`forward`.
            **options: Further arguments of the step; ``share`` is added, where the mechanism takes it.

        Returns:
            New token rows; what the step says of the edges that were drawn, ``[E', ...]``; and their numbers among
            the edge rows, ``[E']``, flat over the batch (``None`` without edge rows).
        """
        check_call(x, graph)
        if x.dim() < 2 or x.shape[-2] != graph.num_targets:
            raise ArgumentError(f"x must be [..., {graph.num_targets}, width], tokens and width, got {list(x.shape)}")
        if edge is not None and (edge.dim() < 2 or edge.shape[-2] != graph.num_edges):
            raise ArgumentError(f"edge must be [..., {graph.num_edges}, width], got {list(edge.shape)}")
        shared = x.shape[:-2] if not graph.leading else ()  # dimensions that share the graph, each to get its own
        if len(shared) > 1 and "transform" in options:
            raise ArgumentError(f"with transform=, x must be [B, N, width] or [N, width], got {list(x.shape)}")
        batch = shared.numel() if shared else None
        cached = graph.num_sources - graph.num_targets if "transform" in options else None
        wants: dict[str, Any] = {"edges": edge is not None, "share": self.attention.takes_share, **(measures or {})}
        drawn = self.draw(graph, batch, **wants, self_offset=cached)
        if wants["share"]:
            options["share"] = drawn.share
        rows = x.flatten(0, -3) if batch is not None else x
        part = None
        if edge is not None and drawn.edge is not None:
            number = drawn.edge % graph.num_edges if edge.dim() == 2 and batch is not None else drawn.edge
            part = edge.reshape(-1, edge.shape[-1]).index_select(0, number)
        out, new = step(rows, drawn.graph, part, **options)
        return out.reshape(x.shape), new, drawn.edge


def ssa(
    width: int,
    heads: int,
    edge_width: int | None = None,
    *,
    attention: str = "multihead",
    attention_options: dict[str, Any] | None = None,
    keep: float = 0.25,
    scheme: str = "uniform",
    sigma: float | None = None,
    minimum: int = 8,
    always: int = 0,
    keep_self: bool | None = None,
    shape: tuple[int, int] | None = None,
    positions: Literal["bfs"] | Measure | None = None,
    hops: Measure | None = None,
    edge_output: bool = True,
    bias: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    backend: str = "auto",
) -> SSA:
    """:class:`SSA` around a mechanism given by name.

    Args:
        width: Channels of a token row.
        heads: Attention heads.
        edge_width: Channels of an edge row.
        attention: A name of :func:`graphattn.list_mechanisms`.
        attention_options: Further arguments of that mechanism.
        keep: See :class:`SSA`.
        scheme: See :class:`SSA`.
        sigma: See :class:`SSA`.
        minimum: See :class:`SSA`.
        always: See :class:`SSA`.
        keep_self: See :class:`SSA`.
        shape: See :class:`SSA`.
        positions: See :class:`SSA`.
        hops: See :class:`SSA`.
        edge_output: For mechanisms that take it.
        bias: For mechanisms that take it.
        dropout: For mechanisms that take it.
        attention_dropout: For mechanisms that take it.
        backend: For mechanisms that take it.

    Raises:
        ArgumentError: If there is no such mechanism, or it does not take these options.
    """
    if attention == "ssa":
        raise ArgumentError("attention must be another mechanism than 'ssa'")
    make = MECHANISMS.get(attention)
    known = inspect.signature(make).parameters
    shared = {"edge_output": edge_output, "bias": bias, "dropout": dropout, "backend": backend}
    shared["attention_dropout"] = attention_dropout
    options = {key: value for key, value in shared.items() if key in known} | (attention_options or {})
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ArgumentError(f"attention_options of {attention!r} must be among {list(known)[3:]}, got {unknown}")
    inner = make(width, heads, edge_width, **options)
    options = {"sigma": sigma, "minimum": minimum, "always": always, "keep_self": keep_self, "shape": shape}
    options |= {"positions": positions, "hops": hops}
    return SSA(inner, keep, scheme, **options)
