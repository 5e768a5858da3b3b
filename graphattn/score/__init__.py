"""Scores: one number for each edge and head."""

from graphattn.score.base import SCORES, Score, resolve_score
from graphattn.score.dot import DotScore

__all__ = ["SCORES", "DotScore", "Score", "resolve_score"]
