"""Looking at attention: what each layer weighed, which tokens it makes central, and whether that is what counts.

Reads only: a model gives the same numbers while it is looked at. Pictures need matplotlib.
"""

from graphattn.insight.boxes import BoxScores, box_scores
from graphattn.insight.capture import Captured, capture
from graphattn.insight.centrality import eigenvector, expected_visits, katz, leak, pagerank
from graphattn.insight.deletion import DeletionCurve, deletion_curve
from graphattn.insight.heatmap import plot_map, plot_table, plot_tree
from graphattn.insight.hops import (
    AttentionDistance,
    DistanceProfile,
    HeadGroups,
    HopProfile,
    attention_distance,
    distance_profile,
    local_and_global,
    waad,
)
from graphattn.insight.maps import Columns, Edges, KeptMaps, MapPart, lag
from graphattn.insight.perron import PerronCosines, perron_cosines
from graphattn.insight.pictures import plot_deletion, plot_graph_relevance, plot_relevance
from graphattn.insight.received import Received, ReceivedAttention, Reducer, fai, received_attention, u_shape
from graphattn.insight.record import LayerRecord, record
from graphattn.insight.relevance import RELEVANCES, token_relevance
from graphattn.insight.selection import SelectionQuality, selection_quality
from graphattn.insight.sinks import (
    Lines,
    OffsetMeans,
    Sinks,
    SkewedLines,
    find_sinks,
    parent_offset,
    sink_scores,
    sinks_of,
    skewed_lines,
)
from graphattn.insight.topology import Shift, compare_received, jensen_shannon, topology_alignment
from graphattn.insight.trees import (
    PERTURBATIONS,
    linkage_reliance,
    perturb,
    token_distance,
    tree_depth,
    tree_distance,
)

__all__ = [
    "PERTURBATIONS",
    "RELEVANCES",
    "AttentionDistance",
    "BoxScores",
    "Captured",
    "Columns",
    "DeletionCurve",
    "DistanceProfile",
    "Edges",
    "HeadGroups",
    "HopProfile",
    "KeptMaps",
    "LayerRecord",
    "Lines",
    "MapPart",
    "OffsetMeans",
    "PerronCosines",
    "SelectionQuality",
    "Received",
    "ReceivedAttention",
    "Reducer",
    "Shift",
    "Sinks",
    "SkewedLines",
    "attention_distance",
    "box_scores",
    "capture",
    "compare_received",
    "deletion_curve",
    "distance_profile",
    "eigenvector",
    "expected_visits",
    "fai",
    "find_sinks",
    "jensen_shannon",
    "katz",
    "lag",
    "leak",
    "linkage_reliance",
    "local_and_global",
    "pagerank",
    "parent_offset",
    "perron_cosines",
    "perturb",
    "plot_deletion",
    "plot_graph_relevance",
    "plot_map",
    "plot_relevance",
    "plot_table",
    "plot_tree",
    "received_attention",
    "record",
    "sink_scores",
    "sinks_of",
    "skewed_lines",
    "token_distance",
    "selection_quality",
    "token_relevance",
    "topology_alignment",
    "tree_depth",
    "tree_distance",
    "u_shape",
    "waad",
]
