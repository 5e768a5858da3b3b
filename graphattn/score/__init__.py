"""Scores: one number for each edge and head."""

from graphattn.score.base import SCORES, Score, resolve_score
from graphattn.score.dot import DotScore
from graphattn.score.gat import GATScore
from graphattn.score.gatv2 import GATv2Score

__all__ = ["SCORES", "DotScore", "GATScore", "GATv2Score", "Score", "resolve_score"]
