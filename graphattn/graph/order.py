"""Orders of tokens in which a graph fills fewer and fuller tiles.

An order is an int64 permutation ``[N]``: place ``i`` holds token ``order[i]``. It is used in one of two ways:

- ``graph.reorder(order)`` makes the graph of the moved tokens; the rows of x, q, k, v move along, ``x[order]``.
- ``graph.prepare("tiles", order=order)`` leaves tokens where they are and lets the tiles of attention stand at places.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph.rules import Blocks, Causal, Complete
from graphattn.graph.token_graph import TokenGraph

__all__ = ["align_members", "bfs", "image_tiles", "partition", "rcm", "reorder"]


def rcm(graph: TokenGraph) -> Tensor:
    """Reverse Cuthill-McKee order (1969): neighbours get near numbers, so that tiles gather along the diagonal.

    Fills tiles of graphs that are long and thin (meshes, molecules, roads); does little for graphs of small diameter.
    Edges count both ways. Computed on the CPU by SciPy.

    Args:
        graph: A square graph without leading dimensions. The members of a batch stay together.

    Returns:
        int64 ``[N]`` on the device of the graph.

    Raises:
        ArgumentError: If the graph is bipartite or has leading dimensions.
    """
    return _with_members(graph, _cuthill_mckee(_symmetric(graph, "rcm")))


def bfs(graph: TokenGraph) -> Tensor:
    """Breadth-first order: every connected component from its lowest token on, one after another, neighbours by number.

    A position along a graph: what is near in the order is near in the graph, mostly. Edges count both ways. Computed on
    the CPU by SciPy, in time of the edges; of complete, causal and block graphs it is the order of tokens.

    Args:
        graph: A square graph without leading dimensions. The members of a batch stay together.

    Returns:
        int64 ``[N]`` on the device of the graph.

    Raises:
        ArgumentError: If the graph is bipartite or has leading dimensions.

    Example:
        >>> from graphattn import TokenGraph
        >>> bfs(TokenGraph.from_edge_index(torch.tensor([[0, 3, 2], [3, 1, 4]]), 5)).tolist()
        [0, 3, 1, 2, 4]
    """
    if isinstance(graph, (Blocks, Causal, Complete)) and graph.is_square:
        return torch.arange(graph.num_targets, device=graph.device)
    return _with_members(graph, _breadth_first(_symmetric(graph, "bfs")))


def partition(graph: TokenGraph, *, parts: int | None = None, size: int | None = None) -> Tensor:
    """Tokens cut into parts with few edges between them, part after part.

    Greedy growth: a part starts beside the one before, and takes again and again the token with the most edges into it,
    until it is full. Fills tiles of graphs with communities, where :func:`rcm` alone spreads each over the band. Edges
    count both ways. Computed on the CPU in Python, about a second for a million edges.

    Args:
        graph: A square graph without leading dimensions. The members of a batch stay together.
        parts: Number of parts; their sizes differ by less than two.
        size: Instead of ``parts``: tokens of a part (the last may have fewer), the block size of the tiles, say.

    Returns:
        int64 ``[N]`` on the device of the graph.

    Raises:
        ArgumentError: If not exactly one of ``parts`` and ``size`` is given, it is not positive, or the graph is
            bipartite or has leading dimensions.
    """
    if (parts is None) == (size is None):
        raise ArgumentError(f"give parts or size, not both or none; got parts={parts} and size={size}")
    for name, value in (("parts", parts), ("size", size)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} must be 1 or more, got {value}")
    matrix = _symmetric(graph, "partition")
    count = graph.num_targets
    if size is not None:
        cuts = list(range(0, count, size))
    else:
        assert parts is not None
        cuts = [count * part // parts for part in range(parts)]
    return _with_members(graph, _grown(matrix, set(cuts)))


def image_tiles(height: int, width: int, tile: int = 8) -> Tensor:
    """Pixels tile by tile, row-major within and among the tiles: a block of places is a square of the image.

    The pixels around those of a block then stand in 9 blocks, where blocks that are stretches of a row meet
    ``2 r + 1`` rows of two or three stretches each: fuller tiles where ``width`` is a few times ``tile ** 2``, about as
    full ones in small images.

    Args:
        height: Rows of the image; pixel ``(row, column)`` is token ``row * width + column``.
        width: Columns of the image.
        tile: Side of a tile; ``tile ** 2`` should be the block size, and ``tile`` should divide both sides.

    Returns:
        int64 ``[height * width]``.

    Raises:
        ArgumentError: If a size is negative, or ``tile`` not positive.
    """
    if height < 0 or width < 0 or tile < 1:
        raise ArgumentError(f"height and width must be 0 or more and tile 1 or more, got {height}, {width} and {tile}")
    token = torch.arange(height * width)
    row, column = token // max(width, 1), token % max(width, 1)
    across = -(-width // tile)
    return ((row // tile) * across + column // tile).argsort(stable=True)


def align_members(ptr: Tensor, num_tokens: int, block: int) -> tuple[Tensor, Tensor]:
    """Places where every member of a ragged batch starts at a block of its own, so that no tile joins two members.

    Nothing waits for the device.

    Args:
        ptr: ``[B + 1]`` first token of each member.
        num_tokens: The last entry of ``ptr``.
        block: Places in a block.

    Returns:
        int32 ``[places]``: the token at each place, -1 for nobody, with as many blocks as members of these sizes could
        need; and how many of these blocks are used, int64 ``[]``.
    """
    ptr = ptr.long()
    members = ptr.shape[0] - 1
    most = (num_tokens + members * (block - 1)) // block
    blocks = (ptr.diff() + (block - 1)) // block
    begin = torch.cat([blocks.new_zeros(1), blocks.cumsum(0)])
    shift = torch.repeat_interleave(begin[:-1] * block - ptr[:-1], ptr.diff(), output_size=num_tokens)
    token = torch.arange(num_tokens, device=ptr.device)
    places = torch.full((most * block,), -1, dtype=torch.int32, device=ptr.device)
    return places.scatter_(0, token + shift, token.int()), begin[-1]


def reorder(graph: TokenGraph, order: Tensor) -> TokenGraph:
    """The same graph, renumbered: token ``i`` of the result is token ``order[i]``; edges keep their order.

    Args:
        graph: A square graph without leading dimensions. A batch keeps its members, which must stay together.
        order: A permutation ``[N]``.

    Raises:
        ArgumentTypeError: If ``order`` is not an integer tensor.
        ArgumentError: If it is not a permutation, or parts members.
    """
    if not isinstance(order, Tensor) or order.dtype == torch.bool or order.is_floating_point():
        got = order.dtype if isinstance(order, Tensor) else type(order).__name__
        raise ArgumentTypeError(f"order must be an integer tensor [N], got {got}")
    if order.shape != (graph.num_targets,):
        raise ArgumentError(
            f"order must be a permutation of the {graph.num_targets} tokens, got shape {list(order.shape)}; "
            "restrict() takes some of the tokens"
        )
    return graph.restrict(order.to(graph.device))


_EMPTY = np.zeros(0, dtype=np.int64)


def _symmetric(graph: TokenGraph, what: str) -> Any:
    graph._need_square(what)
    if graph.leading:
        raise ArgumentError(f"{what} needs a graph without leading dimensions, got {list(graph.leading)}")
    matrix = graph.to_scipy()
    return (matrix + matrix.T).tocsr()


def _cuthill_mckee(matrix: Any) -> np.ndarray:
    from scipy.sparse import csgraph

    if matrix.shape[0] == 0:
        return _EMPTY
    return csgraph.reverse_cuthill_mckee(matrix, symmetric_mode=True).astype(np.int64)


def _breadth_first(matrix: Any) -> np.ndarray:
    from scipy.sparse import csgraph, csr_matrix

    tokens = matrix.shape[0]
    if tokens == 0:
        return _EMPTY
    _, component = csgraph.connected_components(matrix, directed=False)
    first = np.unique(component, return_index=True)[1]
    # One more token, before all, beside the first of each component: one search finds them all, and what it says of one
    # component does not depend on the others.
    matrix.sort_indices()
    begin = np.concatenate([[0], matrix.indptr + first.size])
    near = np.concatenate([first + 1, matrix.indices + 1])
    whole = csr_matrix((np.ones(near.size, dtype=np.int8), near, begin), shape=(tokens + 1, tokens + 1))
    order = csgraph.breadth_first_order(whole, 0, return_predecessors=False)[1:].astype(np.int64) - 1
    lowest: np.ndarray = order[np.argsort(first[component[order]], kind="stable")]
    return lowest


def _grown(matrix: Any, cuts: set[int]) -> np.ndarray:
    """Tokens in the order in which parts take them; a part starts at each cut."""
    begin, neighbours = matrix.indptr.tolist(), matrix.indices.tolist()
    count = matrix.shape[0]
    taken, shared = bytearray(count), [0] * count
    order: list[int] = []
    rest = iter(range(count))
    heap: list[tuple[int, int]] = []  # (minus the edges into the part, token), outdated entries included
    touched: list[int] = []
    while len(order) < count:
        token = heapq.heappop(heap)[1] if heap else next(rest)
        if taken[token]:
            continue
        if len(order) in cuts:
            heap.clear()
            for old in touched:
                shared[old] = 0
            touched.clear()
        taken[token] = True
        order.append(token)
        for other in neighbours[begin[token] : begin[token + 1]]:
            if not taken[other]:
                shared[other] += 1
                touched.append(other)
                heapq.heappush(heap, (-shared[other], other))
    return np.array(order, dtype=np.int64)


def _with_members(graph: TokenGraph, order: np.ndarray) -> Tensor:
    """Members in their own order, tokens of each in the order found."""
    found = torch.from_numpy(order).to(graph.device)
    if graph.target_ptr is None:
        return found
    return found[graph.target_batch[found].argsort(stable=True)]
