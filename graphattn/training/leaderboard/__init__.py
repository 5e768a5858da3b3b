"""Leaderboard runs: one configuration over several seeds, and the row that a submission needs.

``graphattn leaderboard --config x.yaml --seeds 10`` runs each seed as a ``graphattn fit`` of its own, so that a seed
that fails or is killed costs the others nothing, and writes mean and unbiased deviation beside published entries. The
configuration says in its section ``leaderboard`` what the row is about (:class:`LeaderboardOptions`).
"""

from __future__ import annotations

from graphattn.training.leaderboard.options import LeaderboardOptions, PublishedEntry, required_seeds

__all__ = ["LeaderboardOptions", "PublishedEntry", "required_seeds"]
