"""DGL's attention layers on this library's attention: DGL's constructors, inputs, state dicts and numbers.

They take a ``DGLGraph`` (plain, batch, bipartite, block) and work inside ``dgl.nn.HeteroGraphConv``. They take a
:class:`~graphattn.TokenGraph`, too, and then need no DGL: models and checkpoints outlive it. Weights are never spread
over channels: what is stored for each edge has one number a head, if anything.
"""

from graphattn.bridge.dgl.dot import DotGatConv
from graphattn.bridge.dgl.gat import GATConv, GATv2Conv
from graphattn.bridge.dgl.graphs import token_graph
from graphattn.bridge.dgl.transformer import BiasedMHA, GraphormerLayer

__all__ = ["BiasedMHA", "DotGatConv", "GATConv", "GATv2Conv", "GraphormerLayer", "token_graph"]
