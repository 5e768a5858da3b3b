"""Normalisers: scores to weights."""

from graphattn.normalize.base import NORMALIZERS, Normalizer, resolve_normalizer
from graphattn.normalize.flow import Flow
from graphattn.normalize.frobenius import Frobenius
from graphattn.normalize.mutual import Mutual
from graphattn.normalize.sigmoid import Sigmoid
from graphattn.normalize.softmax import Softmax
from graphattn.normalize.sum import Sum
from graphattn.normalize.symmetric import Symmetric

__all__ = [
    "NORMALIZERS",
    "Flow",
    "Frobenius",
    "Mutual",
    "Normalizer",
    "Sigmoid",
    "Softmax",
    "Sum",
    "Symmetric",
    "resolve_normalizer",
]
