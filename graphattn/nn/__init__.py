"""Parts without an opinion on the graph: norms, feed-forward network, pooling, and the block that holds a mechanism."""

from graphattn.nn.block import Block
from graphattn.nn.feed_forward import FeedForward
from graphattn.nn.norm import make_norm
from graphattn.nn.pool import POOLS, pool
from graphattn.nn.readout import Readout

__all__ = ["POOLS", "Block", "FeedForward", "Readout", "make_norm", "pool"]
