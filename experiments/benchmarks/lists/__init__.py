"""Graphs that are drawn and graphs that are learned, beside PyTorch's dense attention."""
