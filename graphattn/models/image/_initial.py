"""Initial values of a vision transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from graphattn.errors import ArgumentError
from graphattn.models.patches import sincos_positions
from graphattn.nn import PreNormBlock

if TYPE_CHECKING:
    from graphattn.models.image.vision_transformer import VisionTransformer

__all__ = ["draw_parameters"]


def draw_parameters(model: VisionTransformer, how: str, positions: str) -> None:
    """Initial values as timm's; a mechanism keeps its own."""
    if how not in ("", "jax"):
        raise ArgumentError(f"weight_init must be '' or 'jax', got {how!r}")
    if model.pos_embed is not None:
        nn.init.trunc_normal_(model.pos_embed, std=0.02)
    if model.pos_embed is not None and positions == "sincos":
        waves = sincos_positions(*model.patch_embed.grid_size, model.embed_dim)
        model.pos_embed.data[:, model._positioned_prefix :] = waves
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=1e-6)
    parts: list[nn.Module] = [model.pre_logits, model.head]
    for block in model.blocks:
        assert isinstance(block, PreNormBlock)
        parts += [block.mlp, block.mixer]
    for linear in (module for part in parts for module in part.modules() if isinstance(module, nn.Linear)):
        if how == "jax":
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)
        else:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
    if how == "jax":
        patches = model.patch_embed.proj
        nn.init.trunc_normal_(patches.weight, std=patches.weight[0].numel() ** -0.5)
        for parameter in (patches.bias, *model.head.parameters()):
            if parameter is not None:
                nn.init.zeros_(parameter)
