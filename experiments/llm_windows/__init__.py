"""Language models on windows of a graph: train in one, run in another."""
