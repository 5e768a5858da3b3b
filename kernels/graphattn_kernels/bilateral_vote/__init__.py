"""Votes of pixels about their neighbours: both must agree; the best, the mean or the worst of a pixel's pairs."""

from graphattn_kernels.bilateral_vote.api import agreed_edges, bilateral_vote

__all__ = ["agreed_edges", "bilateral_vote"]
