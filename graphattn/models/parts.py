"""The local layers and mechanisms of networks, from names and plain arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from graphattn.errors import ArgumentError
from graphattn.graph import ExphormerGraph, TokenGraph, exphormer
from graphattn.mechanisms import MECHANISMS, Mechanism, Subsampled
from graphattn.models.convs import ConvStep, make_conv
from graphattn.nn import GINE

__all__ = ["ExphormerTokens", "checkpointed", "make_local", "make_mechanism"]


def make_mechanism(
    name: str,
    width: int,
    heads: int,
    edge_width: int | None,
    *,
    edge_output: bool,
    shared: dict[str, Any] | None = None,
    **options: Any,
) -> Mechanism:
    """A mechanism by name.

    Args:
        name: See :func:`graphattn.list_mechanisms`.
        width: Channels of a token row.
        heads: Attention heads.
        edge_width: Channels of an edge row; ``None``: no edge rows.
        edge_output: Whether somebody reads the new edge rows, for mechanisms that can leave them out.
        shared: Arguments that the mechanism gets if it takes them, and else goes without.
        **options: Further arguments.

    Raises:
        ArgumentError: If there is no such mechanism, or it does not take these arguments.
    """
    make = MECHANISMS.get(name)
    known = inspect.signature(make).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ArgumentError(f"options of mechanism {name!r} must be among {list(known)[3:]}, got {unknown}")
    options = {**{key: value for key, value in (shared or {}).items() if key in known}, **options}
    if "edge_output" in known:
        options.setdefault("edge_output", edge_output)
    return make(width, heads, edge_width, **options)


def make_local(
    name: str | None, width: int, heads: int, *, edges: bool, edge_output: bool, backend: str, options: dict[str, Any]
) -> nn.Module | None:
    """A local layer ``local(x, graph, edge)``, which returns new token rows and new edge rows or ``None``.

    Args:
        name: ``"gine"``, a mechanism, a name or path of :func:`~graphattn.models.convs.make_conv`; ``None``: none.
        width: Channels of token and edge rows.
        heads: For layers that have heads.
        edges: Whether there are edge rows.
        edge_output: Whether somebody reads the new edge rows.
        backend: See :func:`graphattn.attend`.
        options: Further arguments of the layer.
    """
    edge_width = width if edges else None
    if name is None:
        return None
    if name == "gine":
        return GINE(width, edges=edges, **{"backend": backend, **options})
    if name in MECHANISMS:
        options = {"backend": backend, **options}
        return make_mechanism(name, width, heads, edge_width, edge_output=edge_output, **options)
    return ConvStep(make_conv(name, width, width, heads=heads, edge_dim=edge_width, options=options))


def checkpointed(block: nn.Module, *args: Any, **options: Any) -> Tensor:
    """``block(*args, **options)``, computed again in the backward pass instead of keeping what is inside, with the same
    chance: that of a device, which PyTorch sees to, and that of generators which SSA was given."""
    sources = [
        part.generator for part in block.modules() if isinstance(part, Subsampled) and part.generator is not None
    ]
    if not sources:
        return checkpoint(block, *args, use_reentrant=False, **options)  # type: ignore[no-any-return]
    states = [source.get_state() for source in sources]

    @contextmanager
    def as_before() -> Iterator[None]:
        now = [source.get_state() for source in sources]
        for source, state in zip(sources, states, strict=True):
            source.set_state(state)
        try:
            yield
        finally:
            for source, state in zip(sources, now, strict=True):
                source.set_state(state)

    both = (nullcontext(), as_before())
    return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: both, **options)  # type: ignore[no-any-return]


class ExphormerTokens(nn.Module):
    """Nodes and hubs as the tokens of Exphormer's graph, with learned rows for hubs and for each kind of edge
    (arXiv 2303.06147).

    Args:
        width: Channels of token and edge rows.
        hubs: Hubs of each graph.
        degree: Of the expander, where its edges are not given.
    """

    def __init__(self, width: int, hubs: int = 1, degree: int = 4) -> None:
        super().__init__()
        self.degree = degree
        self.hubs = nn.Parameter(torch.randn(hubs, width))
        self.edge_types = nn.Embedding(2 + 2 * hubs, width)

    def forward(
        self, x: Tensor, graph: TokenGraph, edge: Tensor | None, expander_index: Tensor | None
    ) -> tuple[Tensor, TokenGraph, Tensor, ExphormerGraph]:
        """Token rows; the given edges among tokens; edge rows of the whole graph, to those of given edges their own
        added; the whole graph."""
        found = exphormer(graph, degree=self.degree, hubs=self.hubs.shape[0], expander=expander_index)
        local = TokenGraph.from_edge_index(
            found.node[graph.edge_index], found.graph.num_tokens, ptr=found.graph.target_ptr, validate=False
        )
        rows = self.edge_types(found.edge_type)
        if edge is not None:
            given = edge.shape[0]
            rows = torch.cat([rows[:given] + edge, rows[given:]])
        return found.join(x, self.hubs), local, rows, found
