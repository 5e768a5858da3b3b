"""The graph transformer's attention (Dwivedi & Bresson, "A Generalization of Transformer Networks to Graphs", 2020)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from graphattn.attention import AttentionOutput, attend
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.mechanisms.base import Mechanism, Transform, check_rows, drop_seed, head_width
from graphattn.propagate import PROPAGATORS, OneHop

__all__ = ["GraphTransformerAttention"]


class GraphTransformerAttention(Mechanism):
    """Clamped scaled dot product over the given edges, softmax over a token's in-edges, one hop.

    .. math::
        s_{st} = \\operatorname{clamp}\\Big(\\frac{1}{\\sqrt{d}} \\sum_c q_{tc} k_{sc} e_{stc}\\Big), \\qquad
        x'_t = O \\Big[\\sum_s \\operatorname{softmax}_s(s_{st})\\, v_s\\Big], \\qquad
        e'_{st} = O_e \\Big[\\tfrac{1}{\\sqrt{d}}\\, q_t \\odot k_s \\odot e_{st}\\Big]

    (arXiv 2012.09699, eqs. 4-5 without and 8-12 with edge rows). As in the released code, the score is clamped before
    the exponential, and the edge output is the product before the clamp. Two differences: a token without in-edges
    gets 0 instead of 0/0, and the edge form is an exact softmax, where the code adds 1e-6 to its denominator.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        edge_width: Channels of an edge row; ``None``: no edge rows. Must equal ``width`` where given.
        clamp: Bound on the score, 5 in the paper; ``None``: no bound.
        bias: Give the query, key, value and edge projections a bias (published: no).
        edge_output: Return new edge rows, where there are edge rows (published: yes).
        dropout: On the concatenated heads before the output projection.
        attention_dropout: On the attention weights (published: none).
        propagator: How values move along the weights (published: ``"one_hop"``), a name of
            :data:`graphattn.propagate.PROPAGATORS`: ``"pagerank"``, say.
        propagator_options: Arguments of the propagator, ``{"alpha": 0.1}`` say.
        backend: See :func:`graphattn.attend`.
    """

    takes_transform = True

    def __init__(
        self,
        width: int,
        heads: int,
        edge_width: int | None = None,
        *,
        clamp: float | None = 5.0,
        bias: bool = False,
        edge_output: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        propagator: str = "one_hop",
        propagator_options: dict[str, Any] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if edge_width not in (None, width):
            raise ArgumentError(f"edge_width must equal width, {width}, or be None, got {edge_width}")
        self.width, self.heads, self.head_width = width, heads, head_width(width, heads)
        self.clamp, self.attention_dropout, self.backend = clamp, attention_dropout, backend
        self.propagator = PROPAGATORS.get(propagator)(**(propagator_options or {}))
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width)
        self.edge = nn.Linear(width, width, bias=bias) if edge_width else None
        self.edge_out = nn.Linear(width, width) if edge_width and edge_output else None
        self.dropout = nn.Dropout(dropout)

    @property
    def reads_row_by_row(self) -> bool:  # type: ignore[override]
        """Whether a token can be computed alone: with one hop, and without new edge rows."""
        return isinstance(self.propagator, OneHop) and self.edge_out is None

    def forward(
        self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None, *, transform: Transform | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Mechanism.forward`; with edge rows, ``x`` is ``[N, width]`` and the graph has no leading
        dimensions."""
        check_rows(x, graph, self.width, transform)
        q, k, v = (self._heads(project(x)) for project in (self.query, self.key, self.value))
        if transform is not None:
            q, k, v = transform(q, k, v)
        p, seed = drop_seed(self, self.attention_dropout, x)
        options: dict[str, Any] = {"clamp": self.clamp, "dropout_p": p, "dropout_seed": seed, "backend": self.backend}
        options["propagator"] = self.propagator
        if self.edge is None:
            if edge is not None:
                raise ArgumentError("edge rows were given to a mechanism made with edge_width=None")
            return self._merge(attend(graph, q, k, v, **options)), None  # type: ignore[arg-type]
        if edge is None:
            raise ArgumentError(
                f"edge rows [E, {self.width}] are needed by a mechanism made with edge_width={self.width}"
            )
        if x.dim() != 2 or graph.leading or edge.shape != (graph.num_edges, self.width):
            raise ArgumentError(
                f"edge must be [{graph.num_edges}, {self.width}], a row for each edge of a graph without leading "
                f"dimensions, beside x [N, {self.width}]; got edge {list(edge.shape)}, x {list(x.shape)} and a graph "
                f"with leading dimensions {list(graph.leading)}"
            )
        gate = self._heads(self.edge(edge))
        if self.edge_out is None:
            return self._merge(attend(graph, q, k, v, edge_gate=gate, **options)), None  # type: ignore[arg-type]
        found = attend(graph, q, k, v, edge_gate=gate, need_product=True, **options)  # type: ignore[arg-type]
        assert isinstance(found, AttentionOutput) and found.product is not None
        return self._merge(found.out), self.edge_out(self.dropout(found.product.flatten(-2)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_width))

    def _merge(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(x.flatten(-2)))

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}, heads={self.heads}, clamp={self.clamp}"
