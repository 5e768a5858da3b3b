"""The ways to make a token graph, as class methods of :class:`~graphattn.graph.TokenGraph`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from graphattn.graph.lists import ListGraph
    from graphattn.graph.token_graph import TokenGraph

__all__ = ["Construction"]


class Construction:
    """What :class:`~graphattn.graph.TokenGraph` can be made from. Each method hands on to the file that does it."""

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_tokens: int | None = None,
        *,
        num_targets: int | None = None,
        num_sources: int | None = None,
        ptr: Tensor | None = None,
        target_ptr: Tensor | None = None,
        source_ptr: Tensor | None = None,
        validate: bool = True,
    ) -> TokenGraph:
        """A graph from PyG's ``edge_index``.

        Args:
            edge_index: Integer ``[2, E]``: sources, then targets. Duplicates count twice in attention.
            num_tokens: Number of tokens of a square graph; default: the end of ``ptr``, or else the largest
                index plus one.
            num_targets: Number of targets of a bipartite graph (instead of ``num_tokens``); default: the end of
                ``target_ptr``, or else, beside ``num_sources``, the largest target plus one.
            num_sources: Number of sources of a bipartite graph (instead of ``num_tokens``); likewise.
            ptr: ``[B + 1]`` first token of each member of a square batch, ending with ``num_tokens``.
            target_ptr: The same for the targets of a bipartite batch.
            source_ptr: The same for the sources of a bipartite batch.
            validate: Check shapes, dtypes, the range of every index and that no edge leaves its member (one
                pass and, on CUDA, a synchronisation). Without it, a bad index is undefined behaviour.

        Raises:
            ArgumentTypeError: If a tensor has the wrong type or dtype.
            ArgumentError: If a shape, size or index does not fit.
        """
        from graphattn.graph import edges

        return edges.from_edge_index(
            edge_index, (num_tokens, num_targets, num_sources), (ptr, target_ptr, source_ptr), validate
        )

    @classmethod
    def from_csr(
        cls,
        rowptr: Tensor,
        col: Tensor,
        *,
        num_sources: int | None = None,
        target_ptr: Tensor | None = None,
        source_ptr: Tensor | None = None,
        validate: bool = True,
    ) -> TokenGraph:
        """A graph from rows of targets, without a copy: the sources of target ``t`` are
        ``col[rowptr[t]:rowptr[t + 1]]``, ascending. Edge tensors are in the order of ``col``.

        Args:
            rowptr: Integer ``[T + 1]``.
            col: Integer ``[E]``.
            num_sources: Number of sources; default: as many as targets.
            target_ptr: Members of a batch, see :meth:`from_edge_index`.
            source_ptr: Members of a batch, see :meth:`from_edge_index`.
            validate: Check the arrays (one pass).

        Raises:
            ArgumentTypeError: If a tensor has the wrong type or dtype.
            ArgumentError: If the arrays are inconsistent.
        """
        from graphattn.graph import edges

        return edges.from_csr(rowptr, col, num_sources, (target_ptr, source_ptr), validate)

    @classmethod
    def from_adj_t(cls, adjacency: Any) -> TokenGraph:
        """A graph from a *transposed* adjacency (rows are targets): torch.sparse CSR/CSC/COO, SparseTensor,
        SciPy sparse, or a dense boolean mask ``[T, S]`` (True: the target may read the source)."""
        from graphattn.graph import convert

        return convert.from_adj_t(adjacency)

    @classmethod
    def from_adj(cls, adjacency: Any) -> TokenGraph:
        """A graph from an adjacency whose rows are sources; the kinds of :meth:`from_adj_t`."""
        from graphattn.graph import convert

        return convert.from_adj_t(adjacency).T

    @classmethod
    def from_pyg(cls, data: Any) -> TokenGraph:
        """The graph of a PyG ``Data`` or ``Batch`` (members from ``ptr``)."""
        from graphattn.graph import convert

        return convert.from_pyg(data)

    @classmethod
    def from_networkx(cls, graph: Any) -> TokenGraph:
        """The graph of a NetworkX (di)graph, nodes and edges in their iteration order; undirected edges count
        both ways. :func:`graphattn.graph.networkx_attributes` reads labels and attributes."""
        from graphattn.graph import convert

        return convert.from_networkx(graph)

    @classmethod
    def from_dgl(cls, graph: Any, edge_type: Any = None) -> TokenGraph:
        """The graph of a ``DGLGraph`` (bipartite, block, batch), or of one edge type of a heterogeneous one; edges in
        DGL's order."""
        from graphattn.graph import convert

        return convert.from_dgl(graph, edge_type)

    @classmethod
    def batch(cls, graphs: Sequence[TokenGraph]) -> TokenGraph:
        """One block-diagonal graph of several, members marked by ``target_ptr`` and ``source_ptr``."""
        from graphattn.graph import batch

        return batch.batch(graphs)

    @classmethod
    def per_head(cls, graphs: Sequence[TokenGraph]) -> TokenGraph:
        """A different graph for each attention head; all of one size. Leading dimension ``[H]``."""
        from graphattn.graph import batch

        return batch.stack(graphs, axis="h")

    @classmethod
    def stack(cls, graphs: Sequence[TokenGraph]) -> TokenGraph:
        """A different graph for each batch entry; all of one size. Leading dimension ``[B]``, or ``[B, H]``
        when the graphs are :meth:`per_head` themselves."""
        from graphattn.graph import batch

        return batch.stack(graphs, axis="b")

    @classmethod
    def from_mask(cls, mask: Tensor, axes: str = "") -> TokenGraph:
        """The graph of a boolean mask ``[..., T, S]`` (True: the target may read the source), held as bits; leading
        dimensions as ``axes`` says: ``""``, ``"h"``, ``"b"`` or ``"bh"``. Nothing waits for the device."""
        from graphattn.graph import bits

        return bits.from_mask(mask, axes)

    @classmethod
    def from_lists(
        cls, index: Tensor, *, block: int, num_targets: int, num_sources: int | None = None, **options: Any
    ) -> ListGraph:
        """Each block of targets reads one list of sources.

        Args:
            index: Integer ``[*leading, blocks, m]``: block i, targets ``i * block`` to ``(i + 1) * block - 1``, reads
                the sources ``index[..., i, :]``, each once.
            block: Targets in a block; the last may be smaller.
            num_targets: Number of targets.
            num_sources: Number of sources; default: as many.
            **options: ``lengths [*leading, blocks]``: entries of each list that are read (default: all). ``axes``: what
                the leading dimensions are, ``""``, ``"h"``, ``"b"`` or ``"bh"``. ``order [places]`` or
                ``[*leading, places]``: the target at each place of the blocks, -1 for nobody (default: in order).
                ``causal``: targets skip the sources after them. ``keep_self``: each target reads itself in any case.
                ``disjoint``: lists of a copy have no source in common, which lets attention gather keys once. ``ptr``:
                members of a ragged batch. ``validate``: check every entry (on CUDA, a synchronisation).

        Raises:
            ArgumentTypeError: If a tensor has the wrong type or dtype.
            ArgumentError: If shapes or entries do not fit.
        """
        from graphattn.graph import lists

        return lists.from_lists(index, block=block, num_targets=num_targets, num_sources=num_sources, **options)

    @classmethod
    def top_k(cls, scores: Tensor, k: int, **options: Any) -> TokenGraph:
        """Each target reads the ``k`` sources that score best: of equal scores the lowest source, NaN before all,
        -inf never. No gradient; on CUDA nothing waits for the device (but see ``always``).

        Args:
            scores: ``[*leading, T, S]``; with ``block``, ``[*leading, blocks, S]``, as of
                :func:`graphattn.kernels.block_scores`.
            k: Sources of each row.
            **options: ``axes``: what the leading dimensions are, ``""``, ``"h"``, ``"b"`` or ``"bh"``. ``always``: bool
                ``[S]`` or indices, sources that every row has besides (with ``block``, indices spare a wait for the
                device). ``keep_self``: every target has itself besides (with ``block``, all of its block).
                ``full_rows``: bool ``[T]``, targets that read everybody. ``block``: so many targets share a row of
                scores and a list, and the graph is a list graph; ``num_targets`` then, where it is not S.

        Raises:
            ArgumentTypeError: If a tensor has the wrong type or dtype.
            ArgumentError: If shapes or values do not fit.
        """
        from graphattn.graph import learned

        return learned.top_k(scores, k, **options)

    @classmethod
    def threshold(cls, scores: Tensor, at: float, **options: Any) -> TokenGraph:
        """Each target reads the sources that score above ``at``; options of :meth:`top_k`, but ``block``."""
        from graphattn.graph import learned

        return learned.threshold(scores, at, **options)
