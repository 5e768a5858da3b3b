"""Looking at attention: what each layer weighed, which tokens it makes central, and whether that is what counts.

Reads only: a model gives the same numbers while it is looked at. Pictures need matplotlib.
"""

from graphattn.insight.boxes import BoxScores, box_scores
from graphattn.insight.centrality import eigenvector, expected_visits, katz, leak, pagerank
from graphattn.insight.deletion import DeletionCurve, deletion_curve
from graphattn.insight.perron import PerronCosines, perron_cosines
from graphattn.insight.pictures import plot_deletion, plot_graph_relevance, plot_relevance
from graphattn.insight.record import LayerRecord, record
from graphattn.insight.relevance import RELEVANCES, token_relevance

__all__ = [
    "RELEVANCES",
    "BoxScores",
    "DeletionCurve",
    "LayerRecord",
    "PerronCosines",
    "box_scores",
    "deletion_curve",
    "eigenvector",
    "expected_visits",
    "katz",
    "leak",
    "pagerank",
    "perron_cosines",
    "plot_deletion",
    "plot_graph_relevance",
    "plot_relevance",
    "record",
    "token_relevance",
]
