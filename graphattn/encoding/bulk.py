"""One transform over a whole data set, many graphs at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graphattn.encoding._structure import check_count
from graphattn.encoding.transforms import AddLaplacianPE, NodeEncoding, need_data
from graphattn.errors import ArgumentTypeError
from graphattn.graph import TokenGraph
from graphattn.graph.check import check_edge_index

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["precompute"]


def precompute(data: Any, transform: Any, *, chunk: int = 256) -> Any:
    """Apply a transform to every graph of a data set, with the encodings of many graphs in one go.

    The result is what ``transform`` gives graph by graph; transforms from elsewhere are applied just so.

    Args:
        data: A PyG ``InMemoryDataset``, or a sequence of ``Data``. It is left as it is.
        transform: A transform, or a list or ``Compose`` of them.
        chunk: Number of graphs taken together, which bounds the memory.

    Returns:
        A copy of the data set, or a list of new ``Data``.

    Raises:
        ArgumentTypeError: If ``data`` is neither.
    """
    from torch_geometric.data import Data, InMemoryDataset
    from torch_geometric.transforms import Compose

    check_count("chunk", chunk)
    if isinstance(data, InMemoryDataset):
        graphs = precompute([data.get(i) for i in data.indices()], transform, chunk=chunk)
        result = copy.copy(data)
        result._indices = result._data_list = None
        result.data, result.slices = result.collate(graphs)
        return result
    if isinstance(data, Data) or not isinstance(data, Sequence):
        raise ArgumentTypeError(
            f"data must be an InMemoryDataset or a sequence of Data, got {type(data).__name__}; call the "
            "transform itself on a single graph"
        )
    transforms = list(transform) if isinstance(transform, (list, tuple)) else [transform]
    graphs = list(data)
    while transforms:
        first = transforms.pop(0)
        if isinstance(first, Compose):
            transforms[:0] = first.transforms
        elif isinstance(first, NodeEncoding):
            first = _graph_by_graph(first)
            graphs = [done for i in range(0, len(graphs), chunk) for done in _together(graphs[i : i + chunk], first)]
        else:
            graphs = [first(graph) for graph in graphs]
    return graphs


def _graph_by_graph(transform: NodeEncoding) -> NodeEncoding:
    if isinstance(transform, AddLaplacianPE) and transform.sign == "random_batch":
        # Graph by graph, each is a batch of its own, with signs of its own; the copy draws from the same generator.
        transform = copy.copy(transform)
        transform.sign = "random"
    return transform


def _together(graphs: list[Data], transform: NodeEncoding) -> list[Data]:
    edges = [_edge_index(graph, type(transform).__name__) for graph in graphs]
    sizes = [graph.num_nodes for graph in graphs]
    ptr = [0, *accumulate(sizes)]
    edge_index = torch.cat([edge + start for edge, start in zip(edges, ptr, strict=False)], dim=1)
    batch = TokenGraph.from_edge_index(
        edge_index, ptr[-1], ptr=torch.tensor(ptr, device=edge_index.device), validate=False
    )
    rows = transform.encode(batch).split(sizes)
    # Clones, because a slice would keep the whole chunk alive, and be saved with it.
    return [transform.store(copy.copy(graph), part.clone()) for graph, part in zip(graphs, rows, strict=True)]


def _edge_index(data: Any, who: str) -> Tensor:
    need_data(data, who)
    if type(data.edge_index) is not Tensor:  # other forms of edges, or none: the general way
        return TokenGraph.from_pyg(data).edge_index
    edge_index, size = data.edge_index, data.num_nodes
    if edge_index.dim() != 2 or (edge_index.numel() and not 0 <= edge_index.min() <= edge_index.max() < size):
        check_edge_index(edge_index, size, size)  # says what is wrong
    return edge_index
