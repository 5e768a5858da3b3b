"""Connected components of the edges of a grid, for a batch of images."""

from graphattn_kernels.connected_components.api import connected_components

__all__ = ["connected_components"]
