"""The vision transformer with any mechanism on any graph of patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, patterns
from graphattn.graph.csr import lasting
from graphattn.models.image._initial import draw_parameters
from graphattn.models.image._timm import TimmFace, check_pool
from graphattn.models.parts import checkpointed, make_mechanism
from graphattn.models.patches import GraphRule, PatchEmbed, patch_graph, resize_positions
from graphattn.nn import PreNormBlock

__all__ = ["ATTENTIONS", "VisionTransformer"]

ATTENTIONS = {"softmax": "multihead"}
"""Other names of mechanisms, beside those of :func:`graphattn.list_mechanisms`."""


class VisionTransformer(TimmFace):
    """The vision transformer (Dosovitskiy et al., arXiv 2010.11929) whose attention is any mechanism of the library and
    whose tokens, prefix tokens and then patches row by row, are any token graph.

    Arguments, their defaults and the methods are those of timm's class of this name (1.0.31), so that timm's training
    script can drive it. With ``attention="softmax"`` it is the same function, and :func:`from_timm` renames timm's
    weights; parameters are drawn as there, but for the mechanism's, which draws its own.

    Args:
        img_size: Pixels of a side, or ``(height, width)``.
        patch_size: Pixels of a side of a patch, or ``(height, width)``.
        in_chans: Channels of an image.
        num_classes: Classes; 0: no classifier.
        global_pool: ``"token"`` (the class token), ``"avg"`` or ``"max"`` over patches, or ``""``: no pooling.
        embed_dim: Channels of a token row.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the feed-forward networks as a multiple of ``embed_dim``.
        qkv_bias: Give all projections of the mechanism a bias, where it takes ``bias``.
        attention: ``"softmax"`` or any name of :func:`graphattn.list_mechanisms`.
        attention_options: Further arguments of the mechanism.
        graph: Who reads whom: ``"complete"``, ``"grid"``, ``"neighbourhood"``, ``"window"``, ``"strided"``,
            ``"random_regular"``, a function of ``(height, width)`` in patches, or a graph
            (see :func:`graphattn.models.patches.patch_graph`). Prefix tokens read and are read by all.
        graph_options: Of a named graph, ``{"radius": 2}`` say.
        init_values: Initial value of LayerScale; ``None``: none.
        class_token: A token for the class, before all others.
        reg_tokens: Registers (arXiv 2309.16588), after the class token.
        no_embed_class: No positions for prefix tokens.
        pos_embed: Positions, added to patches: ``"learn"`` (drawn small, as timm's), ``"sincos"`` (learned, from sines
            and cosines of row and column, which small data sets need; arXiv 2205.01580 keeps them fixed), ``"none"``.
        fc_norm: The last norm after pooling instead of before; ``None``: for ``"avg"`` and ``"max"``.
        dynamic_img_size: Take images of any size that the patches divide; positions are interpolated.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after positions are added.
        proj_drop_rate: Dropout in mechanisms (before their output projection) and feed-forward networks.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0 at the first.
        mixer_projection: A further linear map after each mechanism
            (:func:`graphattn.models.infvit.infvit_4`).
        representation_size: A hidden layer with tanh before the classifier, as in the ViT paper; ``None``: none.
        weight_init: ``""``: deviation 0.02, timm's default. ``"jax"``: that of the ViT paper, Xavier-uniform
            feed-forward networks and a classifier of zeros.

    Raises:
        ArgumentError: If the arguments contradict each other.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        *,
        attention: str = "softmax",
        attention_options: dict[str, Any] | None = None,
        graph: GraphRule = "complete",
        graph_options: dict[str, Any] | None = None,
        init_values: float | None = None,
        class_token: bool = True,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        pos_embed: str = "learn",
        fc_norm: bool | None = None,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mixer_projection: bool = False,
        representation_size: int | None = None,
        weight_init: str = "",
    ) -> None:
        super().__init__()
        check_pool(global_pool, class_token)
        if pos_embed not in ("learn", "sincos", "none"):
            raise ArgumentError(f"pos_embed must be 'learn', 'sincos' or 'none', got {pos_embed!r}")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.num_prefix_tokens = int(class_token) + reg_tokens
        self.no_embed_class, self.dynamic_img_size, self.grad_checkpointing = no_embed_class, dynamic_img_size, False
        self.attention, self.graph_rule, self.graph_options = attention, graph, dict(graph_options or {})

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        positions = self._positioned_prefix + self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim)) if pos_embed != "none" else None
        self.pos_drop = nn.Dropout(pos_drop_rate)
        shared: dict[str, Any] = {
            "dropout": proj_drop_rate,
            "attention_dropout": attn_drop_rate,
            "bias": qkv_bias,
            "num_tokens": None if dynamic_img_size else self.num_prefix_tokens + self.patch_embed.num_patches,
            "prefix_tokens": self.num_prefix_tokens,
            "grid_size": self.patch_embed.grid_size,
        }
        options = {"edge_output": False, "shared": shared, **(attention_options or {})}
        mechanism = ATTENTIONS.get(attention, attention)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                make_mechanism(mechanism, embed_dim, num_heads, None, **options),
                embed_dim,
                mlp_ratio=mlp_ratio,
                dropout=proj_drop_rate,
                drop_path=drop_path_rate * n / max(depth - 1, 1),
                init_values=init_values,
                mixer_projection=mixer_projection,
            )
            for n in range(depth)
        )
        pooled_norm = global_pool in ("avg", "max") if fc_norm is None else fc_norm
        self.norm = nn.Identity() if pooled_norm else nn.LayerNorm(embed_dim, eps=1e-6)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6) if pooled_norm else nn.Identity()
        self.pre_logits: nn.Module = nn.Identity()
        if representation_size is not None:
            self.pre_logits = nn.Sequential(nn.Linear(embed_dim, representation_size), nn.Tanh())
            self.head_hidden_size = representation_size
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        reduction = max(self.patch_embed.patch_size)
        self.feature_info = [
            {"module": f"blocks.{n}", "num_chs": embed_dim, "reduction": reduction} for n in range(depth)
        ]
        self._graphs: dict[tuple[int, int], TokenGraph] = {}
        self.token_graph(*self.patch_embed.grid_size)  # says now what is wrong with it
        draw_parameters(self, weight_init, pos_embed)

    # --- the network --------------------------------------------------------------------------------------

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Class scores ``[B, num_classes]`` of images ``[B, in_chans, height, width]``; without pooling, of all tokens.

        Args:
            x: Images.
            attn_mask: Boolean ``[N, N]`` over all tokens, true where the row's token may read the column's; edges that
                it does not have are taken out of the graph.
            is_causal: Take edges to later tokens out of the graph.
        """
        return self.forward_head(self.forward_features(x, attn_mask, is_causal))

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Token rows ``[B, N, embed_dim]`` after the last block and norm."""
        x, graph = self._tokens(x, attn_mask, is_causal)
        for block in self.blocks:
            x = self._run(block, x, graph)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Class scores of token rows; ``pre_logits``: what the classifier would read."""
        x = self.head_drop(self.pre_logits(self.fc_norm(self.pool(x))))
        return x if pre_logits else self.head(x)

    def pool(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, C]``, by ``global_pool``."""
        if self.global_pool == "token":
            return x[:, 0]
        patches = x[:, self.num_prefix_tokens :]
        if self.global_pool == "avg":
            return patches.mean(1)
        return patches.amax(1) if self.global_pool == "max" else x

    def token_graph(self, height: int | None = None, width: int | None = None) -> TokenGraph:
        """The graph over the tokens of an image of ``height`` x ``width`` patches; default: of ``img_size``."""
        rows, columns = self.patch_embed.grid_size
        size = (rows if height is None else height, columns if width is None else width)
        graph = self._graphs.get(size)
        if graph is None:
            with lasting():
                graph = patch_graph(self.graph_rule, *size, self.num_prefix_tokens, self.graph_options)
            self._graphs[size] = graph
        return graph

    # --- parts --------------------------------------------------------------------------------------------

    def _run(self, block: nn.Module, x: Tensor, graph: TokenGraph, **options: Any) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpointed(block, x, graph, **options)
        return block(x, graph, **options)

    def _tokens(self, images: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, TokenGraph]:
        """Token rows before the first block, and the graph they are on."""
        grid = self.patch_embed.grid_of(images)
        if grid != self.patch_embed.grid_size and not self.dynamic_img_size:
            height, width = self.patch_embed.img_size
            raise ArgumentError(
                f"x must hold images of {height} x {width} pixels, got {list(images.shape)}; call set_input_size, or "
                "make the model with dynamic_img_size=True"
            )
        rows = self.patch_embed(images)
        first = [t.expand(rows.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.pos_embed is not None and self.no_embed_class:
            rows = rows + resize_positions(self.pos_embed, self.patch_embed.grid_size, grid)
        rows = torch.cat([*first, rows], dim=1) if first else rows
        if self.pos_embed is not None and not self.no_embed_class:
            rows = rows + resize_positions(self.pos_embed, self.patch_embed.grid_size, grid, self.num_prefix_tokens)
        graph = self.token_graph(*grid)
        if graph.device != rows.device:
            with lasting():
                graph = self._graphs[grid] = graph.to(rows.device)
        if mask is not None:
            graph = graph & TokenGraph.from_adj_t(mask)
        if causal:
            graph = graph & patterns.causal(rows.shape[1], device=rows.device)
        return self.pos_drop(rows), graph
