"""Attention over token graphs, timed against other libraries: ``python -m experiments.benchmarks``."""
