"""The table of models."""

from __future__ import annotations

from typing import Any

from torch import nn

from graphattn.registry import Registry

__all__ = ["MODELS", "create_model", "list_models"]

MODELS: Registry[Any] = Registry("model")
MODELS.add("causal_transformer", "graphattn.models.sequence:CausalTransformer")
MODELS.add("connnet", "graphattn.models.image:ConnNet")
MODELS.add("conv_stack", "graphattn.models.stack:ConvStack")
MODELS.add("egt", "graphattn.models.egt:EGT")
MODELS.add("gps", "graphattn.models.gps:GPS")
MODELS.add("gps_molhiv", "graphattn.models.gps:gps_molhiv")
MODELS.add("gps_zinc", "graphattn.models.gps:gps_zinc")
MODELS.add("graph_transformer", "graphattn.models.graph:GraphTransformer")
MODELS.add("graph_transformer_zinc", "graphattn.models.graph:graph_transformer_zinc")
MODELS.add("graph_transformer_pattern", "graphattn.models.graph:graph_transformer_pattern")
MODELS.add("graph_transformer_cluster", "graphattn.models.graph:graph_transformer_cluster")
MODELS.add("infvit_24", "graphattn.models.infvit:infvit_24")
MODELS.add("infvit_4", "graphattn.models.infvit:infvit_4")
MODELS.add("infvit_linear_4", "graphattn.models.infvit:infvit_linear_4")
MODELS.add("vision_transformer", "graphattn.models.image:VisionTransformer")


def create_model(name: str, **options: Any) -> nn.Module:
    """Make a model by name.

    Args:
        name: One of :func:`list_models`.
        **options: Arguments of the model.

    Raises:
        ArgumentError: If no model has this name.
    """
    return MODELS.get(name)(**options)


def list_models() -> list[str]:
    """Names of all models."""
    return MODELS.names()
