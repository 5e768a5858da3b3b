"""Scores: one number for each edge and head."""

from graphattn.score.base import SCORES, Score, resolve_score
from graphattn.score.dot import DotScore
from graphattn.score.gat import GATScore
from graphattn.score.gatv2 import GATv2Score
from graphattn.score.relu_dot import ReluDotScore

__all__ = ["SCORES", "DotScore", "GATScore", "GATv2Score", "ReluDotScore", "Score", "resolve_score"]
