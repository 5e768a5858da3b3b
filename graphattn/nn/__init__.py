"""Parts without an opinion on the graph: norms, feed-forward network, encoders, pooling, and the blocks that hold
mechanisms."""

from graphattn.nn.block import Block
from graphattn.nn.encoders import LaplacianEncoder, NodeEncoder, RowEncoder, WalkEncoder
from graphattn.nn.feed_forward import FeedForward
from graphattn.nn.gine import GINE
from graphattn.nn.gps_block import GPSBlock
from graphattn.nn.link_decoder import LinkDecoder
from graphattn.nn.norm import make_norm
from graphattn.nn.pool import POOLS, pool, unpool
from graphattn.nn.pre_norm_block import DropPath, PreNormBlock
from graphattn.nn.readout import Readout
from graphattn.nn.virtual_node import VirtualNode

__all__ = [
    "GINE",
    "POOLS",
    "Block",
    "DropPath",
    "FeedForward",
    "GPSBlock",
    "LaplacianEncoder",
    "LinkDecoder",
    "NodeEncoder",
    "PreNormBlock",
    "Readout",
    "RowEncoder",
    "VirtualNode",
    "WalkEncoder",
    "make_norm",
    "pool",
    "unpool",
]
