"""Images as tokens: patches, their graph, and what follows when image or patches change size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, patterns

__all__ = [
    "PATCH_GRAPHS",
    "GraphRule",
    "PatchEmbed",
    "patch_graph",
    "resize_patch_weights",
    "resize_positions",
    "sincos_positions",
]

GraphRule: TypeAlias = str | TokenGraph | Callable[[int, int], TokenGraph]

PATCH_GRAPHS: dict[str, Callable[..., TokenGraph]] = {
    "complete": lambda height, width, **options: patterns.complete(height * width, **options),
    "grid": lambda height, width, self_loops=True, **options: patterns.grid(
        height, width, self_loops=self_loops, **options
    ),
    "neighbourhood": lambda height, width, size=3, **options: patterns.neighbourhood(height, width, size, **options),
    "window": lambda height, width, size=1, **options: patterns.window(height * width, size, **options),
    "strided": lambda height, width, stride=2, **options: patterns.strided(height * width, stride, **options),
    "random_regular": lambda height, width, degree=4, **options: patterns.random_regular(
        height * width, degree, **options
    ),
}
"""Graphs over the patches of an image by name; their options are those of :mod:`graphattn.graph.patterns`."""


def patch_graph(
    rule: GraphRule, height: int, width: int, prefix: int = 0, options: dict[str, Any] | None = None
) -> TokenGraph:
    """The token graph of an image: ``prefix`` tokens that are no patch, then its patches row by row.

    Args:
        rule: A name of :data:`PATCH_GRAPHS`; a function of ``(height, width)``; or a graph over the patches or over
            all tokens. Where a graph holds patches only, the prefix tokens read all tokens and are read by all.
        height: Rows of patches.
        width: Columns of patches.
        prefix: Tokens before the patches (class token, registers).
        options: Of a named graph, ``{"radius": 2}`` say.

    Returns:
        A square graph over ``prefix + height * width`` tokens.

    Raises:
        ArgumentError: If there is no graph of this name, it does not take these options, or it is of another size.
    """
    count = height * width
    if isinstance(rule, str):
        if rule not in PATCH_GRAPHS:
            raise ArgumentError(
                f"graph must be one of {sorted(PATCH_GRAPHS)}, a function or a TokenGraph, got {rule!r}"
            )
        if rule == "complete" and not options:
            return patterns.complete(prefix + count)
        try:
            graph = PATCH_GRAPHS[rule](height, width, **(options or {}))
        except TypeError as error:
            raise ArgumentError(f"graph {rule!r} does not take graph_options={options}: {error}") from error
    elif options:
        raise ArgumentError(f"graph_options go with a named graph only, got {options}")
    else:
        graph = rule if isinstance(rule, TokenGraph) else rule(height, width)
    if graph.is_square and graph.num_tokens == prefix + count:
        return graph
    if not graph.is_square or graph.num_tokens != count or graph.leading:
        raise ArgumentError(
            f"graph must hold the {height} x {width} patches, or these after {prefix} other tokens, got {graph}"
        )
    shifted = TokenGraph.from_edge_index(graph.edge_index.long() + prefix, prefix + count, validate=False)
    return shifted | patterns.hubs(prefix + count, prefix, device=graph.device)


def sincos_positions(height: int, width: int, channels: int) -> Tensor:
    """Sines and cosines of row and column, a quarter of the channels each, of periods from 2 pi to 20,000 pi patches
    (Beyer et al., "Better plain ViT baselines for ImageNet-1k", arXiv 2205.01580).

    Args:
        height: Rows of patches.
        width: Columns of patches.
        channels: A multiple of 4.

    Returns:
        ``[height * width, channels]``.

    Raises:
        ArgumentError: If 4 does not divide the channels.
    """
    if channels % 4:
        raise ArgumentError(f"positions of sines and cosines need a multiple of 4 channels, got {channels}")
    quarter = channels // 4
    rate = 10_000.0 ** -(torch.arange(quarter) / max(quarter - 1, 1))
    angles = [torch.arange(size).unsqueeze(1) * rate for size in (height, width)]
    rows, columns = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles)
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=1)


class PatchEmbed(nn.Module):
    """Each patch of an image as one row: a convolution whose stride is its size.

    Args:
        img_size: Pixels of a side, or ``(height, width)``.
        patch_size: The same of a patch.
        in_chans: Channels of an image.
        embed_dim: Channels of a row.

    Raises:
        ArgumentError: If patches do not divide the image.
    """

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int | tuple[int, int], in_chans: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = _pair(img_size), _pair(patch_size)
        self.grid_size = self.grid_for()
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, stride=self.patch_size)

    @property
    def num_patches(self) -> int:
        """Patches of an image of ``img_size``."""
        return self.grid_size[0] * self.grid_size[1]

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images ``[B, in_chans, height, width]``."""
        if images.dim() != 4 or images.shape[1] != self.proj.in_channels:
            raise ArgumentError(
                f"x must be images [B, {self.proj.in_channels}, height, width], got {list(images.shape)}"
            )
        return self.grid_for((images.shape[2], images.shape[3]))

    def grid_for(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> tuple[int, int]:
        """Rows and columns of patches of images and patches of these sizes; default: as they are."""
        height, width = self.img_size if img_size is None else _pair(img_size)
        rows, columns = self.patch_size if patch_size is None else _pair(patch_size)
        if height % rows or width % columns or height < rows or width < columns:
            raise ArgumentError(
                f"patch_size must divide the size of the image, got patches of {rows} x {columns} and images of "
                f"{height} x {width} pixels"
            )
        return height // rows, width // columns

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Another size of images or patches, the latter with resized weights."""
        self.grid_size = self.grid_for(img_size, patch_size)
        self.img_size = self.img_size if img_size is None else _pair(img_size)
        if patch_size is None or _pair(patch_size) == self.patch_size:
            return  # the weights stay the parameter that an optimiser may hold
        self.patch_size = _pair(patch_size)
        self.proj.weight = nn.Parameter(
            resize_patch_weights(self.proj.weight, self.patch_size), requires_grad=self.proj.weight.requires_grad
        )
        self.proj.kernel_size = self.proj.stride = self.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_chans, height, width]`` to ``[B, patches, embed_dim]``."""
        return self.proj(x).flatten(2).transpose(1, 2)


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int = 0) -> Tensor:
    """Learned positions of another grid of patches, by bicubic interpolation with antialiasing (as timm does it).

    Args:
        positions: ``[1, prefix + old_height * old_width, C]``.
        old: Its rows and columns of patches.
        new: The wanted ones.
        prefix: Tokens before the patches, whose positions stay.

    Returns:
        ``[1, prefix + new_height * new_width, C]``.
    """
    if old == new:
        return positions
    first, grid = positions[:, :prefix], positions[:, prefix:]
    image = grid.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bicubic", antialias=True)
    return torch.cat([first, image.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)], dim=1)


def resize_patch_weights(weight: Tensor, new: tuple[int, int]) -> Tensor:
    """The patch embedding for patches of another size that agrees with the old one on resized patches: the
    pseudo-inverse of the resizing (Beyer et al., "FlexiViT", arXiv 2212.08013, section 3.4).

    Args:
        weight: ``[C, channels, height, width]`` of the convolution.
        new: Rows and columns of pixels of a new patch.

    Returns:
        ``[C, channels, *new]``.
    """
    old = (weight.shape[-2], weight.shape[-1])
    if old == new:
        return weight
    pixels = torch.eye(old[0] * old[1], dtype=torch.float64).reshape(-1, 1, *old)
    resizing = F.interpolate(pixels, size=new, mode="bicubic", antialias=True).flatten(1)  # [old pixels, new pixels]
    kernels = weight.detach().flatten(2).double() @ torch.linalg.pinv(resizing.to(weight.device), rtol=1e-6).T
    return kernels.reshape(*weight.shape[:2], *new).to(weight.dtype)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
