"""SSA: training on drawn sub-graphs, and averages of such passes, beside dense training."""
