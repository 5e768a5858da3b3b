"""Token graphs: who may read whom.

An edge ``source -> target`` lets the target read the source. ``edge_index[0]`` holds sources (key, value) and
``edge_index[1]`` targets (query), as in PyTorch Geometric::

    edge_index = [[0, 0],        0 (source) ---> 1 (target)      token 1 reads token 0
                  [1, 2]]             \\--------> 2 (target)      token 2 reads token 0
                                                                 token 0 reads nothing

    mask = [[0, 0, 0],           rows are targets, columns are sources
            [1, 0, 0],
            [1, 0, 0]]

Explicit graphs come from :class:`TokenGraph` and its ``from_`` methods, graphs given by a rule from the functions
below; ``|``, ``&``, ``-``, ``@`` and ``.T`` combine them.
"""

from graphattn.graph.algebra import connected_components
from graphattn.graph.convert import as_token_graph, networkx_attributes, sparse_values
from graphattn.graph.exphormer import ExphormerGraph, expander_edges, exphormer
from graphattn.graph.patterns import (
    Pattern,
    blocks,
    causal,
    complete,
    expander,
    graph_window,
    grid,
    hubs,
    neighbourhood,
    prefix,
    random_regular,
    strided,
    window,
)
from graphattn.graph.token_graph import Csc, Csr, TokenGraph

__all__ = [
    "Csc",
    "Csr",
    "ExphormerGraph",
    "Pattern",
    "TokenGraph",
    "as_token_graph",
    "blocks",
    "causal",
    "complete",
    "connected_components",
    "expander",
    "expander_edges",
    "exphormer",
    "graph_window",
    "grid",
    "hubs",
    "neighbourhood",
    "networkx_attributes",
    "prefix",
    "random_regular",
    "sparse_values",
    "strided",
    "window",
]
