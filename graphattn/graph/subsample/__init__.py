"""Random sub-graphs, drawn anew in every layer of every step.

Every function takes a generator and waits for nothing; one generator on the CPU and the same seed give the same
sub-graph wherever it is used (numbers are drawn on the generator's device). Sources: Hussain, Zaki & Subramanian,
"The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles", KDD 2023 (arXiv:2306.01705). Its code
was not released: uniform keys are the paper's; the concrete local samplers (:func:`jittered_windows`,
:func:`gumbel_hops`) are ours, and unverified against it.

:func:`draw_subgraph` draws from any graph, and waits for the device where the graph is a list of edges.
"""

from graphattn.graph.subsample.chance import count_kept, counts_kept
from graphattn.graph.subsample.hops import gumbel_hops
from graphattn.graph.subsample.local import jittered_windows
from graphattn.graph.subsample.plan import Drawn, Plan
from graphattn.graph.subsample.ragged import ragged_sources, ragged_uniform
from graphattn.graph.subsample.subgraph import draw_subgraph
from graphattn.graph.subsample.uniform import uniform_graph, uniform_pairs, uniform_sources

__all__ = [
    "Drawn",
    "Plan",
    "count_kept",
    "counts_kept",
    "draw_subgraph",
    "gumbel_hops",
    "jittered_windows",
    "ragged_sources",
    "ragged_uniform",
    "uniform_graph",
    "uniform_pairs",
    "uniform_sources",
]
