"""Parts without an opinion on the graph: norms, feed-forward network, encoders, pooling, and the blocks that hold
mechanisms."""

from graphattn.nn.block import Block
from graphattn.nn.egt_block import EGTBlock
from graphattn.nn.encoders import LaplacianEncoder, NodeEncoder, RowEncoder, WalkEncoder
from graphattn.nn.feed_forward import FeedForward
from graphattn.nn.gine import GINE
from graphattn.nn.gps_block import GPSBlock
from graphattn.nn.link_decoder import LinkDecoder
from graphattn.nn.node_tokens import NodeTokens
from graphattn.nn.non_local import NonLocalBlock
from graphattn.nn.norm import BatchNorm, make_norm
from graphattn.nn.pool import POOLS, pool, unpool
from graphattn.nn.pre_norm_block import DropPath, PreNormBlock
from graphattn.nn.readout import Readout
from graphattn.nn.rotary import Rotary, rotate
from graphattn.nn.self_ensemble import SelfEnsemble, self_ensemble
from graphattn.nn.virtual_node import VirtualNode

__all__ = [
    "GINE",
    "POOLS",
    "BatchNorm",
    "Block",
    "DropPath",
    "EGTBlock",
    "FeedForward",
    "GPSBlock",
    "LaplacianEncoder",
    "LinkDecoder",
    "NodeEncoder",
    "NonLocalBlock",
    "NodeTokens",
    "PreNormBlock",
    "Readout",
    "Rotary",
    "SelfEnsemble",
    "RowEncoder",
    "VirtualNode",
    "WalkEncoder",
    "make_norm",
    "pool",
    "rotate",
    "self_ensemble",
    "unpool",
]
