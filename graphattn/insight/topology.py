"""Does attention fit the topology, and did training change its distribution?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from graphattn.errors import ArgumentError

__all__ = ["Shift", "compare_received", "jensen_shannon", "topology_alignment"]


def topology_alignment(received: Tensor, depth: Tensor) -> Tensor:
    """Spearman's rank correlation of received attention with nearness to the root: 1 where the centre receives most,
    then its neighbours, then theirs (the ideal of Guan et al., arXiv 2505.02130).

    Args:
        received: ``[..., N]``; tokens of NaN do not count.
        depth: Integers ``[..., N]``: depth in the tree, negative for tokens that do not count.

    Returns:
        float64 ``[...]``, NaN where all depths or all values are one.
    """
    received = received.detach().cpu().double()
    depth = depth.detach().cpu().expand(received.shape)
    found = []
    for r, d in zip(received.reshape(-1, received.shape[-1]), depth.reshape(-1, received.shape[-1]), strict=True):
        keep = (d >= 0) & ~r.isnan()
        r, d = r[keep], d[keep]
        flat = len(r) < 2 or bool((r == r[0]).all()) or bool((d == d[0]).all())
        found.append(float("nan") if flat else float(stats.spearmanr(r.numpy(), -d.numpy()).statistic))
    return torch.tensor(found, dtype=torch.float64).reshape(received.shape[:-1])


class Shift(NamedTuple):
    """How two distributions of received attention differ.

    Args:
        ks: Statistic of Kolmogorov and Smirnov.
        ks_p: Its p-value.
        t: Welch's t.
        t_p: Its p-value.
        js: Jensen-Shannon divergence in nats, of histograms.
    """

    ks: float
    ks_p: float
    t: float
    t_p: float
    js: float


def compare_received(first: Tensor, second: Tensor, *, bins: int = 100, low: float = -3.0, high: float = -1.0) -> Shift:
    """Compare the distributions of :math:`\\log_{10} r_j` of two sets of tokens: before and after training, text and
    node tokens (Guan et al., arXiv 2505.02130, question 1).

    Args:
        first: Received attention, any shape; values that are not positive are left out.
        second: The same of the other set.
        bins: Of the histograms.
        low: Where the first bin begins, in powers of ten. What lies outside is counted in the outermost bins (the
            notebooks' treatment is not known).
        high: Where the last bin ends.

    Raises:
        ArgumentError: If a set has fewer than two values.
    """
    logs = [torch.log10(x[x > 0].detach().double().cpu()).numpy() for x in (first, second)]
    if min(map(len, logs)) < 2:
        raise ArgumentError(f"both sets must have at least two positive values, got {len(logs[0])} and {len(logs[1])}")
    ks = stats.ks_2samp(*logs)
    welch = stats.ttest_ind(*logs, equal_var=False)
    edges = np.linspace(low, high, bins + 1)
    histograms = [np.histogram(x.clip(low, high), edges)[0].astype(np.float64) for x in logs]
    p, q = (torch.from_numpy(x / x.sum()) for x in histograms)
    js = float(jensen_shannon(p, q))
    return Shift(float(ks.statistic), float(ks.pvalue), float(welch.statistic), float(welch.pvalue), js)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions ``[..., K]`` in nats: between 0 and log 2."""
    middle = (p + q) / 2
    return (torch.xlogy(p, p / middle.clamp(min=1e-300)) + torch.xlogy(q, q / middle.clamp(min=1e-300))).sum(-1) / 2
