"""Sparsifiner beside an oracle, random and local graphs of the same degree, and token pruning of the same cost."""
