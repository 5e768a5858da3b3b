"""The tasks of graph learning benchmarks, of images and of text."""

from graphattn.training.tasks.graphs import GraphClassification, GraphRegression
from graphattn.training.tasks.images import ImageClassification
from graphattn.training.tasks.links import LinkPrediction
from graphattn.training.tasks.nodes import InductiveNodeClassification, NodeClassification
from graphattn.training.tasks.segmentation import Segmentation
from graphattn.training.tasks.sparsification import Sparsification
from graphattn.training.tasks.text import LanguageModelling

__all__ = [
    "GraphClassification",
    "GraphRegression",
    "ImageClassification",
    "InductiveNodeClassification",
    "LanguageModelling",
    "LinkPrediction",
    "NodeClassification",
    "Segmentation",
    "Sparsification",
]
