"""Whole networks, by name."""

from graphattn.models.registry import MODELS, create_model, list_models

__all__ = ["MODELS", "create_model", "list_models"]
