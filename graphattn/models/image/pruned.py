"""A vision transformer that drops the patches its class token does not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import patterns
from graphattn.graph.subsample import count_kept
from graphattn.mechanisms import Sparsifiner
from graphattn.models.image.vision_transformer import VisionTransformer

__all__ = ["PrunedVisionTransformer"]


class PrunedVisionTransformer(VisionTransformer):
    """The vision transformer with token pruning by class attention, as in the released code of Sparsifiner.

    After chosen blocks, the patches that the class token reads most, averaged over heads, stay: a share ``keep`` of
    them after the first, ``keep ** 2`` after the second, and so on. Pruned rows are taken out, for each image its own,
    so later blocks really are smaller; the released code masks them and computes everything, caps the keys of a whole
    batch by its first image, and remembers that budget for the next batch.

    Args:
        *args: Of :class:`VisionTransformer`.
        token_keep: Share of the patches that stays each time; 1: all.
        prune_after: Blocks, from 0, after which is pruned (released code: 3, 6, 9 of 12); ``None``: the last of each of
            the first three quarters of the depth.
        **options: Of :class:`VisionTransformer`, on the complete graph, with a class token, and with attention
            ``"softmax"`` or ``"sparsifiner"`` (by a predictor or an oracle).

    Raises:
        ArgumentError: If the arguments contradict each other.
    """

    def __init__(
        self, *args: Any, token_keep: float = 0.7, prune_after: Sequence[int] | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        depth = len(self.blocks)
        quarters = sorted({max(0, depth * part // 4 - 1) for part in (1, 2, 3)})
        places = quarters if prune_after is None else list(prune_after)
        if not 0.0 < token_keep <= 1.0:
            raise ArgumentError(f"token_keep must be in (0, 1], got {token_keep}")
        if sorted(set(places)) != places or not all(0 <= n < depth for n in places):
            raise ArgumentError(f"prune_after must name some of {depth} blocks, ascending, got {prune_after}")
        if self.cls_token is None or self.graph_rule != "complete":
            raise ArgumentError("pruning by class attention needs class_token=True and graph='complete'")
        for block in self.blocks:
            attention: Any = block.attn
            if not hasattr(attention, "in_proj_weight"):
                raise ArgumentError(f"attention must be 'softmax' or 'sparsifiner', got {self.attention!r}")
            if getattr(attention, "selector", "") in ("random", "window"):
                raise ArgumentError("pruned patches have no fixed neighbours: selector must be 'predictor' or 'oracle'")
        self.token_keep, self.prune_after = token_keep, places

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Rows of the tokens that are left, ``[B, M, embed_dim]``, after the last block and norm."""
        if attn_mask is not None or is_causal:
            raise ArgumentError("a mask over all tokens does not fit those that are left")
        return self.forward_tokens(x)[0]

    def forward_intermediates(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """As :meth:`VisionTransformer.forward_intermediates`, where no patch is pruned.

        Raises:
            ArgumentError: If some are: what is left is no image of patches.
        """
        if self.token_keep < 1.0:
            raise ArgumentError(
                f"forward_intermediates needs all patches, token_keep=1.0, got {self.token_keep}; see forward_tokens"
            )
        return super().forward_intermediates(x, *args, **options)

    def forward_tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the tokens that are left, and which they are.

        Returns:
            ``[B, M, embed_dim]`` and int64 ``[B, M]``, ascending.
        """
        rows, graph = self._tokens(x, None, False)
        prefix, patches = self.num_prefix_tokens, rows.shape[1] - self.num_prefix_tokens
        kept = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape[0], -1)
        blocks: Any = self.blocks
        for number, block in enumerate(blocks):
            attention = block.attn
            before, pruned = rows, kept.shape[1] < prefix + patches
            options = {"tokens": kept} if pruned and isinstance(attention, Sparsifiner) else {}
            rows = self._run(block, rows, graph, **options)
            if number in self.prune_after and self.token_keep < 1.0:
                share = self.token_keep ** (self.prune_after.index(number) + 1)
                count = count_kept(patches, share, minimum=0)
                with torch.no_grad():
                    scores = _class_attention(attention, block.norm1(before))
                    best = scores[:, prefix:].topk(count, 1).indices.sort(1).values + prefix
                    first = torch.arange(prefix, device=rows.device).expand(rows.shape[0], -1)
                    stay = torch.cat([first, best], 1)
                rows, kept = rows.gather(1, stay.unsqueeze(-1).expand(-1, -1, rows.shape[-1])), kept.gather(1, stay)
                graph = patterns.complete(prefix + count, device=rows.device)
        return self.norm(rows), kept


def _class_attention(attention: nn.Module, rows: Tensor) -> Tensor:
    """How much the first token reads each, ``[B, N]``, averaged over heads."""
    layer: Any = attention
    width = rows.shape[-1]
    bias = layer.in_proj_bias
    q = F.linear(rows[:, :1], layer.in_proj_weight[:width], None if bias is None else bias[:width])
    k = F.linear(rows, layer.in_proj_weight[width : 2 * width], None if bias is None else bias[width : 2 * width])
    q, k = (x.unflatten(-1, (layer.heads, -1)).movedim(-2, -3) for x in (q, k))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1).squeeze(1)
