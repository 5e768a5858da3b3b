"""TokenGraph: who may read whom.

An edge ``source -> target`` lets the target read the source: the target asks (query), the source answers
(key and value). ``edge_index[0]`` holds sources and ``edge_index[1]`` targets, as in PyTorch Geometric::

    edge_index = [[s],     source s  ----- key, value ----->  target t
                  [t]]     (answers)                          (asks: query)

    in a matrix of "may read", rows are targets and columns are sources: mask[t, s]
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.graph import pytree
from graphattn.graph.construction import Construction
from graphattn.graph.csr import Csc, Csr, alone, batch_vector, lasting, rows, sort_by_source
from graphattn_kernels import Structure, View

if TYPE_CHECKING:
    from graphattn.graph.patterns import Pattern
    from graphattn_kernels.blocks import Blocks

__all__ = ["Csc", "Csr", "TokenGraph"]


class TokenGraph(Construction):
    """An immutable, possibly bipartite directed graph over tokens.

    Make one with :meth:`from_edge_index` or another ``from_`` method, with a pattern of
    :mod:`graphattn.graph.patterns`, or from other graphs with the algebra (``|  &  -  @  .T``).

    A ragged batch is one block-diagonal graph whose members are marked by ``target_ptr`` and ``source_ptr``
    (PyG's ``ptr``). A graph with *leading* dimensions holds one graph per head and/or batch entry
    (:meth:`per_head`, :meth:`stack`); its edges are stored flat, copy after copy.

    Edge tensors (weights, biases, features) are in the caller's edge order for explicit graphs and
    target-major with ascending sources for patterns.
    """

    # What the pytree of a graph is made of; a subclass appends its own attributes.
    _tensor_fields: tuple[str, ...] = ("_csr", "_csc", "_target", "_reverse", "_target_ptr", "_source_ptr")
    _static_fields: tuple[str, ...] = ("_num_targets", "_num_sources", "_leading", "_leading_axes", "_known_causal")

    # Built where attention asks for them, and again in a copy of the graph: see graphattn.graph.prepared.
    _derived: tuple[str, ...] = ("_structure", "_blocks", "_tile_fill", "_flex_mask", "_chosen")
    _blocks: Blocks | None = None
    _tile_fill: float | None = None
    _flex_mask: Any = None
    _has_duplicates: bool | None = None
    _known_causal: bool = False  # graphs pickled by earlier versions do not say
    _chosen: dict[Any, Any] | None = None  # see graphattn.backends.remembered

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        pytree.register(cls)

    def __init__(
        self,
        csr: Csr | None,
        *,
        num_targets: int,
        num_sources: int,
        target_ptr: Tensor | None = None,
        source_ptr: Tensor | None = None,
        leading: tuple[int, ...] = (),
        leading_axes: str = "",
        known_causal: bool = False,
    ) -> None:
        self._csr = csr
        self._csc: Csc | None = None
        self._target: Tensor | None = None
        self._structure: Structure | None = None
        self._reverse: Tensor | None = None
        self._num_targets = num_targets
        self._num_sources = num_sources
        self._target_ptr = target_ptr
        self._source_ptr = None if source_ptr is target_ptr else source_ptr  # None: as target_ptr
        self._leading = leading
        self._leading_axes = leading_axes
        self._known_causal = known_causal

    # --- facts --------------------------------------------------------------------------------------------

    @property
    def num_targets(self) -> int:
        """Number of tokens that ask (of one copy, where there are leading dimensions)."""
        return self._num_targets

    @property
    def num_sources(self) -> int:
        """Number of tokens that answer (of one copy, where there are leading dimensions)."""
        return self._num_sources

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a square graph.

        Raises:
            ArgumentError: If the graph is bipartite.
        """
        self._need_square("num_tokens")
        return self._num_targets

    @property
    def num_edges(self) -> int:
        """Number of edges, all copies together."""
        return self.csr.col.shape[0]

    @property
    def is_square(self) -> bool:
        """Whether targets and sources are the same number of tokens."""
        return self._num_targets == self._num_sources

    @property
    def device(self) -> torch.device:
        """Where the arrays live."""
        return self.csr.col.device

    @property
    def leading(self) -> tuple[int, ...]:
        """Sizes of the leading dimensions: ``()``, ``(H,)``, ``(B,)`` or ``(B, H)``."""
        return self._leading

    @property
    def leading_axes(self) -> str:
        """What the leading dimensions are: ``""``, ``"h"``, ``"b"`` or ``"bh"``."""
        return self._leading_axes

    @property
    def num_copies(self) -> int:
        """Number of graphs that the leading dimensions hold; 1 without them."""
        return math.prod(self._leading)

    @property
    def target_ptr(self) -> Tensor | None:
        """``[B + 1]`` first target of each member, or ``None`` for a single member."""
        return self._target_ptr

    @property
    def source_ptr(self) -> Tensor | None:
        """``[B + 1]`` first source of each member, or ``None`` for a single member."""
        return self._target_ptr if self._source_ptr is None else self._source_ptr

    @property
    def num_members(self) -> int:
        """Number of graphs in this ragged batch."""
        return 1 if self._target_ptr is None else self._target_ptr.shape[0] - 1

    @property
    def csr(self) -> Csr:
        """The edges by target."""
        if self._csr is None:
            with lasting():
                self._csr = self._enumerate()
        return self._csr

    @property
    def rowptr(self) -> Tensor:
        """See :attr:`Csr.rowptr`."""
        return self.csr.rowptr

    @property
    def col(self) -> Tensor:
        """See :attr:`Csr.col`."""
        return self.csr.col

    @property
    def edge_id(self) -> Tensor | None:
        """See :attr:`Csr.edge_id`."""
        return self.csr.edge_id

    @property
    def row(self) -> Tensor:
        """``[E]``: the target of each edge, in the order of :attr:`csr`; built once."""
        if self._target is None:
            with lasting():
                self._target = rows(self.csr)
        return self._target

    @property
    def csc(self) -> Csc:
        """The edges by source; built once."""
        if self._csc is None:
            with lasting():
                self._csc = sort_by_source(self.csr, self.row, self.num_copies * self._num_sources)
        return self._csc

    @property
    def structure(self) -> Structure:
        """The graph as the kernels see it: both sorted views of the edges; built once."""
        if self._structure is None:
            csr, csc = self.csr, self.csc
            by_target = View(csr.rowptr, csr.col, self.row, csr.edge_id)
            edge_id = csc.transpose_id
            with lasting():
                if csr.edge_id is not None:
                    edge_id = csr.edge_id.index_select(0, edge_id)
                source = csr.col.index_select(0, csc.transpose_id)
            self._structure = Structure(by_target, View(csc.colptr, csc.row, source, edge_id))
        return self._structure

    @property
    def edge_index(self) -> Tensor:
        """int64 ``[2, E]``, sources then targets, in the caller's edge order."""
        csr = self.csr
        edges = torch.stack([csr.col.long(), self.row.long()])
        if csr.edge_id is None:
            return edges
        return torch.empty_like(edges).index_copy_(1, csr.edge_id.long(), edges)

    @property
    def target_batch(self) -> Tensor:
        """int64 ``[T]``: the member that each target belongs to (PyG's ``batch``)."""
        return batch_vector(self._target_ptr, self._num_targets, self.device)

    @property
    def source_batch(self) -> Tensor:
        """int64 ``[S]``: the member that each source belongs to."""
        return batch_vector(self.source_ptr, self._num_sources, self.device)

    @property
    def in_degree(self) -> Tensor:
        """int64 ``[T]``: number of sources that each target reads (flat over copies)."""
        return self.csr.rowptr.diff().long()

    @property
    def out_degree(self) -> Tensor:
        """int64 ``[S]``: number of targets that read each source (flat over copies)."""
        return self.csc.colptr.diff().long()

    @property
    def edge_slices(self) -> Tensor:
        """int64 ``[copies + 1]``: where the edges of each copy begin, for graphs with leading dimensions."""
        if self._num_targets == 0:
            return torch.zeros(self.num_copies + 1, dtype=torch.int64, device=self.device)
        return self.csr.rowptr[:: self._num_targets].long()

    @property
    def reverse_edge(self) -> Tensor:
        """int64 ``[E]``, caller's order: the edge ``t -> s`` for each edge ``s -> t`` (duplicates pair in
        order); built once.

        Raises:
            ArgumentError: If some edge has no reverse.
        """
        if self._reverse is None:
            from graphattn.graph import algebra

            with lasting():
                self._reverse = algebra.reverse_edge(self)
        return self._reverse

    @property
    def has_self_loops(self) -> bool:
        """Whether some token reads itself (``False`` for a bipartite graph)."""
        from graphattn.graph import algebra

        return algebra.has_self_loops(self)

    @property
    def has_duplicates(self) -> bool:
        """Whether some edge is there more than once; looked up once."""
        if self._has_duplicates is None:
            from graphattn.graph import algebra

            self._has_duplicates = algebra.has_duplicates(self)
        return self._has_duplicates

    @property
    def is_symmetric(self) -> bool:
        """Whether each edge is there as often as its reverse."""
        from graphattn.graph import algebra

        return algebra.is_symmetric(self)

    @property
    def pattern(self) -> Pattern | None:
        """The rule that this graph follows, where it is a pattern and not a list of edges."""
        return None

    @property
    def known_causal(self) -> bool:
        """Whether the graph is known, without looking at edges, to have none from a later token to an earlier one: a
        causal pattern, several in a batch, what was drawn from one. ``False`` says nothing."""
        return self._known_causal

    # --- algebra ------------------------------------------------------------------------------------------

    @property
    def T(self) -> TokenGraph:
        """The graph with sources and targets exchanged; edge tensors keep their order (a pattern stays a
        pattern, whose edges are target-major as ever)."""
        from graphattn.graph import algebra

        return algebra.transpose(self)

    def __or__(self, other: TokenGraph) -> TokenGraph:
        from graphattn.graph import algebra

        return algebra.union(self, other)

    def __and__(self, other: TokenGraph) -> TokenGraph:
        from graphattn.graph import algebra

        return algebra.intersection(self, other)

    def __sub__(self, other: TokenGraph) -> TokenGraph:
        from graphattn.graph import algebra

        return algebra.difference(self, other)

    def __matmul__(self, other: TokenGraph) -> TokenGraph:
        from graphattn.graph import algebra

        return algebra.compose(self, other)

    def power(self, hops: int) -> TokenGraph:
        """An edge wherever a walk of 1 to ``hops`` edges leads."""
        from graphattn.graph import algebra

        return algebra.power(self, hops)

    def coalesce(self) -> TokenGraph:
        """The same graph with each edge once, target-major with ascending sources."""
        from graphattn.graph import algebra

        return algebra.coalesce(self)

    def with_self_loops(self) -> TokenGraph:
        """Every token reads itself exactly once; existing edges keep their order, new loops come last (of
        repeated loops the first stays). A pattern stays a pattern."""
        from graphattn.graph import algebra

        return algebra.with_self_loops(self)

    def without_self_loops(self) -> TokenGraph:
        """No token reads itself; the other edges keep their order."""
        from graphattn.graph import algebra

        return algebra.without_self_loops(self)

    def symmetrize(self) -> TokenGraph:
        """Each edge and its reverse, once, target-major with ascending sources."""
        from graphattn.graph import algebra

        return algebra.symmetrize(self)

    def select(self, keep: Tensor) -> TokenGraph:
        """The edges whose entry in ``keep`` (bool ``[E]``, the caller's order) is true; order kept."""
        from graphattn.graph import algebra

        return algebra.select(self, keep)

    def sample(self, keep: float, generator: torch.Generator | None = None) -> TokenGraph:
        """Each edge kept with probability ``keep``, independently; order kept."""
        from graphattn.graph import algebra

        return algebra.sample(self, keep, generator)

    def restrict(self, tokens: Tensor) -> TokenGraph:
        """The sub-graph induced by ``tokens`` (indices or a boolean mask), renumbered in the order given."""
        from graphattn.graph import algebra

        return algebra.restrict(self, tokens)

    def reorder(self, order: Tensor) -> TokenGraph:
        """The same graph with its tokens renumbered: token ``i`` of the result is token ``order[i]`` (int64 ``[N]``,
        see :mod:`graphattn.graph.order`). Rows move along: ``x[order]``, and back ``y[order.argsort()]``; edges keep
        their order."""
        from graphattn.graph import order as orders

        return orders.reorder(self, order)

    def unbatch(self) -> list[TokenGraph]:
        """The members of a ragged batch, each with its own numbering and its edges in the batch's order."""
        from graphattn.graph import batch

        return batch.unbatch(self)

    # --- conversions --------------------------------------------------------------------------------------

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TokenGraph:
        """The graph on another device, caches included."""
        from graphattn.graph import convert

        return convert.to_device(self, device, non_blocking)

    def to_torch_sparse(self, values: Tensor | None = None, layout: torch.layout = torch.sparse_csr) -> Tensor:
        """Transposed adjacency ``[T, S]`` as torch.sparse CSR, CSC or COO, with ``values [E]`` given in the
        caller's order (default: ones)."""
        from graphattn.graph import convert

        return convert.to_torch_sparse(self, values, layout)

    def to_scipy(self, values: Tensor | None = None) -> Any:
        """Transposed adjacency ``[T, S]`` as a SciPy CSR array, with ``values [E]`` given in the caller's
        order (default: ones)."""
        from graphattn.graph import convert

        return convert.to_scipy(self, values)

    def to_dense(self) -> Tensor:
        """Boolean ``[..., T, S]``: may the target read the source?"""
        from graphattn.graph import convert

        return convert.to_dense(self)

    def to_pyg(self, **attributes: Tensor) -> Any:
        """A PyG ``Data`` (``Batch`` for a batch) with this ``edge_index`` and the given attributes."""
        from graphattn.graph import convert

        return convert.to_pyg(self, **attributes)

    def to_networkx(self, **options: Any) -> Any:
        """A NetworkX ``MultiDiGraph`` with integer nodes, or what the options of
        :func:`graphattn.graph.networkx_graphs.to_networkx` say: labels, attributes, the class of the graph."""
        from graphattn.graph import convert

        return convert.to_networkx(self, **options)

    def to_dgl(self, idtype: torch.dtype = torch.int64) -> Any:
        """A ``DGLGraph``, edges in the caller's order."""
        from graphattn.graph import convert

        return convert.to_dgl(self, idtype)

    def to_block_mask(self, block: int = 128) -> Any:
        """A ``BlockMask`` for PyTorch's FlexAttention over tokens in their own order; a pattern brings its rule as the
        ``mask_mod`` and is not listed edge by edge."""
        from graphattn.graph import block_mask

        return block_mask.to_block_mask(self, block)

    # --- use ----------------------------------------------------------------------------------------------

    def prepare(
        self,
        backend: str = "auto",
        *,
        block: int | tuple[int, int] | None = None,
        order: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> TokenGraph:
        """Build now what attention needs later, so that hot loops, compiled functions and CUDA graphs find it ready
        and never wait for the device.

        Args:
            backend: Which backend to build for. ``"auto"``: what it would use here. ``"tiles"``: tiles, which
                ``"auto"`` uses from then on.
            block: Tokens in a block of the tiles (32, 64 or 128), or a pair (targets, sources).
            order: Where tokens stand in the tiles, see :func:`graphattn.graph.tiling.make_blocks`.

        Returns:
            The same graph.
        """
        from graphattn.graph import prepared

        prepared.prepare(self, backend, block, order)
        return self

    def describe(self) -> str:
        """One table of facts: sizes, degrees, density, components, symmetry."""
        from graphattn.graph import describe

        return describe.describe(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw the graph (small) or its adjacency (large) with matplotlib; returns the axes."""
        from graphattn.graph import describe

        return describe.plot(self, ax)

    def __repr__(self) -> str:
        size = f"{self._num_targets}" if self.is_square else f"{self._num_targets} <- {self._num_sources}"
        parts = [f"tokens={size}", f"edges={self.num_edges}"]
        if self._target_ptr is not None:
            parts.append(f"members={self.num_members}")
        if self._leading:
            parts.append(f"leading={tuple(self._leading)}")
        return f"{type(self).__name__}({', '.join(parts)}, device={str(self.device)!r})"

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, **dict.fromkeys(self._derived)}
        return {name: alone(value) for name, value in state.items()}

    def _enumerate(self) -> Csr:
        raise NotImplementedError  # patterns fill this in

    def _need_square(self, what: str) -> None:
        if not self.is_square:
            raise ArgumentError(
                f"{what} needs a square graph, got {self._num_targets} targets and {self._num_sources} sources"
            )


pytree.register(TokenGraph)
