"""Weisfeiler-Leman ids: tokens whose surroundings look alike to a few rounds of colour refinement share an
id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from graphattn.encoding._structure import (
    CsrMatrix,
    adjacency,
    check_choice,
    check_count,
    check_graph,
    diagonal_block,
    member_ptr,
)
from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.graph import TokenGraph

__all__ = ["WLVocabulary", "wl_ids"]


def wl_ids(
    graph: TokenGraph,
    rounds: int = 2,
    *,
    mode: str = "canonical",
    labels: Tensor | None = None,
    num_ids: int | None = None,
) -> Tensor:
    """Colours of the one-dimensional Weisfeiler-Leman refinement.

    In each round a token's new colour is a function of its own and of the multiset of its neighbours'
    colours. Edges count both ways and once; a self-loop makes a token its own neighbour.

    Args:
        graph: Square graph of ``N`` tokens, one or a batch.
        rounds: Rounds of refinement. In published mode this is the released code's ``max_iter``, whose last
            round is computed and then thrown away.
        mode: ``"canonical"``: a 63-bit hash of the colour, the same for the same surroundings in every graph,
            process and machine; turn it into rows of a table with :class:`WLVocabulary` or ``num_ids``.
            ``"published"``: the ids of the code of `"A Generalization of Transformer Networks to Graphs"
            <https://arxiv.org/abs/2012.09699>`_, 1, 2, ... in the order of MD5 sums in each graph, so that
            one id means different things in different graphs; with its ``rounds=2``, a function of the degree
            only.
        labels: Integer ``[N]`` colours to begin with (atom types, say), in canonical mode. Default: all
            alike.
        num_ids: In canonical mode, ids are taken modulo this number; different colours may then fall
            together.

    Returns:
        int64 ``[N]``.

    Raises:
        ArgumentTypeError: If an argument has the wrong type.
        ArgumentError: If ``rounds < 1``, ``mode`` is unknown, ``labels`` has another length, an option of the
            other mode is given, or the graph is bipartite or has leading dimensions.
    """
    check_graph(graph)
    check_count("rounds", rounds)
    check_choice("mode", mode, ("canonical", "published"))
    matrix = adjacency(graph)
    neighbours = (matrix + matrix.T).tocsr()
    if mode == "published":
        if labels is not None or num_ids is not None:
            raise ArgumentError('labels and num_ids need mode="canonical"; the published ids know neither')
        ids = np.ones(graph.num_targets, dtype=np.int64)
        ptr = member_ptr(graph)
        for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
            ids[start:stop] = _published(diagonal_block(neighbours, start, stop), rounds)
        return torch.from_numpy(ids).to(graph.device)

    start_colours = np.zeros(graph.num_targets, dtype=np.uint64)
    if labels is not None:
        start_colours = _checked_labels(labels, graph.num_targets)
    if num_ids is not None:
        check_count("num_ids", num_ids)
    ids = _canonical(neighbours, rounds, start_colours)
    return torch.from_numpy(ids if num_ids is None else ids % num_ids).to(graph.device)


class WLVocabulary:
    """A table from canonical colours to the ids 1, 2, ...; 0 is for colours that it has never met.

    Args:
        colours: int64 tensor of colours from :func:`wl_ids`, in any order and number.
    """

    def __init__(self, colours: Tensor) -> None:
        if not isinstance(colours, Tensor) or colours.dtype != torch.int64:
            got = colours.dtype if isinstance(colours, Tensor) else type(colours).__name__
            raise ArgumentTypeError(f"colours must be an int64 tensor from wl_ids, got {got}")
        self.colours = colours.flatten().cpu().unique()

    @classmethod
    def fit(cls, graphs: Iterable[TokenGraph], rounds: int = 2) -> WLVocabulary:
        """The table of all colours in some graphs."""
        return cls(torch.cat([torch.empty(0, dtype=torch.int64), *(wl_ids(g, rounds).unique().cpu() for g in graphs)]))

    def __call__(self, colours: Tensor) -> Tensor:
        """Ids ``[N]`` of colours ``[N]``."""
        table = self.colours.to(colours.device)
        if table.numel() == 0:
            return torch.zeros_like(colours)
        place = torch.searchsorted(table, colours).clamp(max=table.numel() - 1)
        return torch.where(table[place] == colours, place + 1, 0)

    def __len__(self) -> int:
        """Rows that an embedding table needs: the colours and the unknown."""
        return self.colours.numel() + 1

    def __repr__(self) -> str:
        digest = hashlib.sha256(self.colours.numpy().tobytes()).hexdigest()[:12]
        return f"WLVocabulary({len(self)} ids, {digest})"


def _checked_labels(labels: Tensor, size: int) -> np.ndarray:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ArgumentTypeError(f"labels must be an integer tensor of shape [N], got {got}")
    if labels.shape != (size,):
        raise ArgumentError(f"labels must have shape [{size}], one for each token, got {list(labels.shape)}")
    return labels.cpu().numpy().astype(np.int64).view(np.uint64)


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the input moves about half of the output's."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _canonical(neighbours: CsrMatrix, rounds: int, colours: np.ndarray) -> np.ndarray:
    """A multiset's hash is the sum, modulo 2^64, of its members' hashes: no sort, no order."""
    odd = np.uint64(0x9E3779B97F4A7C15)
    ones = neighbours.astype(np.uint64)
    ones.data[:] = 1
    colours = _mix(colours + odd)
    for _ in range(rounds):
        colours = _mix(colours * odd + ones @ _mix(colours + odd))
    return (colours >> np.uint64(1)).astype(np.int64)


def _published(neighbours: CsrMatrix, rounds: int) -> np.ndarray:
    """One graph by the released procedure, which exits before it stores the last round."""
    starts, ends = neighbours.indptr[:-1].tolist(), neighbours.indptr[1:].tolist()
    colours = [1] * neighbours.shape[0]
    for _ in range(rounds - 1):
        names = [str(colour) for colour in colours]
        around = [names[other] for other in neighbours.indices.tolist()]
        digests = [
            hashlib.md5("_".join([name, *sorted(around[start:end])]).encode(), usedforsecurity=False).hexdigest()
            for name, start, end in zip(names, starts, ends, strict=True)
        ]
        index = {digest: number for number, digest in enumerate(sorted(set(digests)), start=1)}
        refined = [index[digest] for digest in digests]
        if refined == colours:
            break
        colours = refined
    return np.array(colours, dtype=np.int64)
