"""Normalisers: scores to weights."""

from graphattn.normalize.base import NORMALIZERS, Normalizer, resolve_normalizer
from graphattn.normalize.sigmoid import Sigmoid
from graphattn.normalize.softmax import Softmax

__all__ = ["NORMALIZERS", "Normalizer", "Sigmoid", "Softmax", "resolve_normalizer"]
