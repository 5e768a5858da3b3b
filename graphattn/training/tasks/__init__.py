"""The tasks of graph learning benchmarks, and of images."""

from graphattn.training.tasks.graphs import GraphClassification, GraphRegression
from graphattn.training.tasks.images import ImageClassification
from graphattn.training.tasks.links import LinkPrediction
from graphattn.training.tasks.nodes import InductiveNodeClassification, NodeClassification

__all__ = [
    "GraphClassification",
    "GraphRegression",
    "ImageClassification",
    "InductiveNodeClassification",
    "LinkPrediction",
    "NodeClassification",
]
