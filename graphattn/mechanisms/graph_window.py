"""Graph-attention windows (Guan et al., "Attention Mechanisms Perspective: Exploring LLM Processing of Graph-Structured
Data", ICML 2025, arXiv 2505.02130): the mechanism whose choice is the graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from graphattn.attention import attend
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.graph.batch import side_by_side
from graphattn.graph.graph_window import Direction, Distance, GraphWindow, graph_window
from graphattn.graph.rules import Blocks, Causal, Complete, Prefix
from graphattn.mechanisms.base import Mechanism, Transform, check_copies, check_rows, drop_seed, head_width

__all__ = ["GraphWindowAttention", "Window", "WindowSchedule"]

_CLOSED = (Complete, Blocks, Prefix)  # a walk of two edges leads nowhere that one does not, and all read themselves
_Windows = WeakKeyDictionary[TokenGraph, dict[int, TokenGraph]]
_KNOWN: _Windows = WeakKeyDictionary()  # every layer asks for the window of the same graph


@dataclass(frozen=True)
class Window:
    """A window, apart from the prompts that it is laid on; ``str`` and :meth:`parse` write it as ``"uni-2"``.

    Args:
        hops: See :func:`graphattn.graph.graph_window`; ``None``: no bound.
        direction: Likewise.
        distance: Likewise.
    """

    hops: int | None = None
    direction: Direction = "uni"
    distance: Distance = "occurrence"

    @classmethod
    def parse(cls, text: str) -> Window:
        """``"uni-2"``, ``"bidi-4"``, ``"uni-all"``, ``"uni-2-node"`` (distance between nodes of the graph).

        Raises:
            ArgumentError: If it is written otherwise.
        """
        found = re.fullmatch(r"(uni|bidi)-(\d+|all)(?:-(node|occurrence))?", text)
        if found is None:
            raise ArgumentError(f"a window is written 'uni-2', 'bidi-4', 'uni-all' or 'uni-2-node', got {text!r}")
        direction, hops, distance = found.groups()
        return cls(None if hops == "all" else int(hops), direction, distance or "occurrence")  # type: ignore[arg-type]

    def graph(self, batch: Mapping[str, Tensor], *, depth: int | None = None) -> Causal | GraphWindow:
        """The token graph of a batch of prompts.

        Args:
            batch: ``node_of_token``, ``parents``, and where they are needed ``nodes`` and ``attention_mask``: what
                :class:`graphattn_datasets.text_graphs.PromptWriter` makes.
            depth: Depth of the tree of each prompt, where it is known.
        """
        mask = batch.get("attention_mask")
        return graph_window(
            *(batch["node_of_token"], batch["parents"], self.hops, self.direction),
            distance=self.distance,
            node=batch.get("nodes") if self.distance == "node" else None,
            mask=None if mask is None else mask.bool(),
            depth=depth,
        )

    def __str__(self) -> str:
        end = "" if self.distance == "occurrence" else f"-{self.distance}"
        return f"{self.direction}-{'all' if self.hops is None else self.hops}{end}"


@dataclass(frozen=True)
class WindowSchedule:
    """Which window when: a model trained with a small window can be run with a larger one, so that inference needs no
    mask (section 5 as a secondary source reports it; the published tables could not be read).

    Args:
        train: 2 or 3 hops, one way, by default.
        evaluate: No bound, one way, by default: the plain causal model.
    """

    train: Window = Window(2)
    evaluate: Window = Window()

    def at(self, training: bool) -> Window:
        """The window in training, or out of it."""
        return self.train if training else self.evaluate


class GraphWindowAttention(Mechanism):
    """Multi-head attention in which a token reads what is at most ``hops`` edges away.

    .. math::
        x'_t = O \\sum_{s :\\, d(s, t) \\le k}
        \\operatorname{softmax}_s\\Big(\\frac{q_t^\\top k_s}{\\sqrt{d}}\\Big)\\, v_s

    On a prompt the graph is the window already: made by :meth:`Window.graph`, it is taken as it is, as are complete,
    causal, prefix and block graphs, which longer walks do not make larger. Of any other graph the window is made here,
    once for all layers: :meth:`~graphattn.TokenGraph.power` with self-loops.

    Args:
        width: Channels of a token row.
        heads: Attention heads; must divide ``width``.
        edge_width: ``None``: the edges of a window have no rows.
        hops: The window k, 1 or more, in training.
        eval_hops: In evaluation; ``None``: the same.
        bias: Give the projections a bias.
        dropout: On the concatenated heads before the output projection.
        attention_dropout: On the attention weights.
        backend: See :func:`graphattn.attend`.
    """

    takes_transform = True
    reads_row_by_row = True

    def __init__(
        self,
        width: int,
        heads: int,
        edge_width: int | None = None,
        *,
        hops: int = 2,
        eval_hops: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.width, self.heads, self.head_width = width, heads, head_width(width, heads)
        if edge_width is not None:
            raise ArgumentError(f"edge_width must be None, the edges of a window have no rows; got {edge_width}")
        for name, value in (("hops", hops), ("eval_hops", hops if eval_hops is None else eval_hops)):
            if value < 1:
                raise ArgumentError(f"{name} must be 1 or more, got {value}")
        self.hops, self.eval_hops = hops, hops if eval_hops is None else eval_hops
        self.attention_dropout, self.backend = attention_dropout, backend
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, graph: TokenGraph, edge: Tensor | None = None, *, transform: Transform | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`Mechanism.forward`; the second result is ``None``."""
        check_rows(x, graph, self.width, transform)
        if edge is not None:
            raise ArgumentError(f"edge must be None, the edges of a window have no rows; got {list(edge.shape)}")
        check_copies(x, graph)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width)).unbind(-3)
        if transform is not None:
            q, k, v = transform(q, k, v)
        p, seed = drop_seed(self, self.attention_dropout, x)
        window = _window(graph, self.hops if self.training else self.eval_hops)
        beside = bool(graph.leading) and not window.leading  # the copies of a graph, made one
        if beside:
            q, k, v = (rows.flatten(0, 1) for rows in (q, k, v))
        out = attend(window, q, k, v, dropout_p=p, dropout_seed=seed, backend=self.backend)
        assert isinstance(out, Tensor)
        if beside:
            out = out.unflatten(0, (graph.leading[0], graph.num_tokens))
        return self.out(self.dropout(out.flatten(-2))), None

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return f"width={self.width}, heads={self.heads}, hops={self.hops}, eval_hops={self.eval_hops}"


def _window(graph: TokenGraph, hops: int) -> TokenGraph:
    if isinstance(graph.pattern, (GraphWindow, *_CLOSED)) or not graph.is_square:
        return graph  # not square: new tokens of a sequence, which read what is kept
    if torch.compiler.is_compiling():
        return side_by_side(graph).power(hops).with_self_loops()
    known = _KNOWN.setdefault(graph, {})
    if hops not in known:
        known[hops] = side_by_side(graph).power(hops).with_self_loops()
    return known[hops]
