"""What timm's training scripts ask of a vision transformer, and its weights under our names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph
from graphattn.models.patches import PatchEmbed, resize_positions

__all__ = ["POOLINGS", "TimmFace", "check_pool", "from_timm"]

POOLINGS = ("token", "avg", "max", "")


class TimmFace(nn.Module):
    """The methods of timm's vision transformer (1.0.31) that are not its forward pass, for
    :class:`graphattn.models.image.VisionTransformer`."""

    patch_embed: PatchEmbed
    blocks: nn.ModuleList
    norm: nn.Module
    fc_norm: nn.Module
    pre_logits: nn.Module
    head: nn.Module
    cls_token: nn.Parameter | None
    pos_embed: nn.Parameter | None
    num_classes: int
    global_pool: str
    embed_dim: int
    head_hidden_size: int
    num_prefix_tokens: int
    no_embed_class: bool
    dynamic_img_size: bool
    grad_checkpointing: bool
    _graphs: dict[tuple[int, int], TokenGraph]

    def token_graph(self, height: int | None = None, width: int | None = None) -> TokenGraph:
        raise NotImplementedError

    def _run(self, block: nn.Module, x: Tensor, graph: TokenGraph, **options: Any) -> Tensor:
        raise NotImplementedError

    def _tokens(self, images: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, TokenGraph]:
        raise NotImplementedError

    @property
    def _positioned_prefix(self) -> int:
        return 0 if self.no_embed_class else self.num_prefix_tokens

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Token rows after some blocks, as timm returns them.

        Args:
            x: Images ``[B, in_chans, height, width]``.
            indices: Which blocks: the last so many, a list (negative: from the end), or ``None``: all.
            return_prefix_tokens: Return pairs of patch rows and prefix rows.
            norm: Apply the last norm to each.
            stop_early: Run no block after the last that is wanted; then the first result is of that block.
            output_fmt: Patch rows as ``"NCHW"`` (an image of patches) or ``"NLC"``.
            intermediates_only: Return the list alone.
            output_dict: Return ``image_features``, ``image_intermediates`` and ``image_intermediates_prefix``.
            attn_mask: See :meth:`forward`.
            is_causal: See :meth:`forward`.

        Returns:
            ``(features, list)``, the list, or a dict.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ArgumentError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        taken = _take(len(self.blocks), indices)
        grid = self.patch_embed.grid_of(x)
        x, graph = self._tokens(x, attn_mask, is_causal)
        found: list[Tensor] = []
        for n, block in enumerate(self.blocks):
            if stop_early and n > max(taken):
                break
            x = self._run(block, x, graph)
            if n in taken:
                found.append(self.norm(x) if norm else x)
        prefix = [rows[:, : self.num_prefix_tokens] for rows in found]
        patches = [rows[:, self.num_prefix_tokens :] for rows in found]
        if output_fmt == "NCHW":
            patches = [rows.unflatten(1, grid).permute(0, 3, 1, 2).contiguous() for rows in patches]
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": patches}
            if with_prefix:
                result["image_intermediates_prefix"] = prefix
            return result if intermediates_only else {**result, "image_features": self.norm(x)}
        listed: list[Any] = list(zip(patches, prefix, strict=True)) if with_prefix else list(patches)
        return listed if intermediates_only else (self.norm(x), listed)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; ``num_classes=0``: none."""
        if global_pool is not None:
            check_pool(global_pool, self.cls_token is not None)
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = self.patch_embed.proj.weight
        head: nn.Module = nn.Identity()
        if num_classes > 0:
            head = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
        self.head = head.train(self.training)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Images and patches of another size: patch weights, positions and graph follow."""
        before, after = self.patch_embed.grid_size, self.patch_embed.grid_for(img_size, patch_size)
        graph = self.token_graph(*after)  # says what is wrong with it while nothing has changed
        self._graphs.clear()
        self._graphs[after] = graph
        self.patch_embed.set_input_size(img_size, patch_size)
        if self.pos_embed is not None and before != after:
            positions = resize_positions(self.pos_embed.detach(), before, after, self._positioned_prefix)
            self.pos_embed = nn.Parameter(positions, requires_grad=self.pos_embed.requires_grad)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each block again in the backward pass instead of keeping what is inside."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone."""
        return {"pos_embed", "cls_token", "reg_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for learning rates that decay with it."""
        return {
            "stem": r"^cls_token|reg_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last wanted one, and norm and classifier; the numbers of the wanted blocks."""
        taken = _take(len(self.blocks), indices)
        self.blocks = self.blocks[: max(taken) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm, self.pre_logits, self.head_hidden_size = nn.Identity(), nn.Identity(), self.embed_dim
            self.reset_classifier(0, "")
        return taken

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm's data pipeline asks a model for."""
        return {
            "num_classes": self.num_classes,
            "input_size": (self.patch_embed.proj.in_channels, *self.patch_embed.img_size),
            "fixed_input_size": not self.dynamic_img_size,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }


class _Renaming(NamedTuple):
    theirs: str
    ours: str


_TIMM = (
    _Renaming(".attn.qkv.weight", ".attn.in_proj_weight"),
    _Renaming(".attn.qkv.bias", ".attn.in_proj_bias"),
    _Renaming(".attn.proj.", ".attn.out_proj."),
    _Renaming(".mlp.fc1.", ".mlp.inner."),
    _Renaming(".mlp.fc2.", ".mlp.outer."),
    _Renaming(".ls1.gamma", ".scale1"),
    _Renaming(".ls2.gamma", ".scale2"),
)


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of timm's ``VisionTransformer`` under the names of :class:`VisionTransformer` with softmax attention.

    Args:
        state_dict: ``timm_model.state_dict()``.
    """
    renamed = {}
    for name, value in state_dict.items():
        for theirs, ours in _TIMM:
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def check_pool(global_pool: str, class_token: bool) -> None:
    """Say what is wrong with a pooling."""
    if global_pool not in POOLINGS:
        raise ArgumentError(f"global_pool must be one of {POOLINGS}, got {global_pool!r}")
    if global_pool == "token" and not class_token:
        raise ArgumentError("global_pool='token' needs class_token=True; use 'avg'")


def _take(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Numbers of blocks from timm's ways to name them."""
    indices = count if indices is None else indices
    wanted = range(count - indices, count) if isinstance(indices, int) else indices
    taken = [count + n if n < 0 and not isinstance(indices, int) else n for n in wanted]
    if not taken or not all(0 <= n < count for n in taken):
        raise ArgumentError(f"indices must name some of {count} blocks, got {indices!r}")
    return taken
