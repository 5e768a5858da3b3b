"""Losses on connectivity cubes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.errors import ArgumentError
from graphattn.mechanisms.connectivity.cube import connectivity_labels, pair_logits
from graphattn_kernels._grid import check_cube

__all__ = ["ConnectivityLoss", "dice_loss", "edge_loss"]

_PRESETS: dict[str, dict[str, float]] = {
    "connnet": {"cube": 1.0},
    "biconnet": {"cube": 0.8, "votes": 0.2, "mask": 1.0, "dice": 1.0, "edge": 1.0, "smooth": 1e-3},
    "dconnnet": {"cube": 1.0, "votes": 0.2, "mask": 1.0, "dice": 1.0, "edge": 1.0, "smooth": 1e-4, "relative_edge": 1},
}


class ConnectivityLoss(nn.Module):
    """Weighted sum of losses on a connectivity cube; each is a mean, so weights do not depend on the size.

    With P the probabilities, V the bilateral votes, S their maximum, Y the true cube and m the mask:

    .. math::
        w_1 \\mathrm{BCE}(P, Y) + w_2 \\mathrm{BCE}(V, Y) + w_3 \\mathrm{BCE}(S, m) + w_4 \\mathrm{Dice}(S, m)
        + w_5 L_{\\text{edge}}

    ConnNet (arXiv 1804.07836) has the first term alone (summed or averaged: unverified; here averaged over pixels,
    channels and batch). The others are BiconNet's (Pattern Recognition 2022) and DconnNet's (CVPR 2023), with the
    weights of their released code; DconnNet's cross-entropy over classes and its auxiliary head are not here. Votes are
    taken as logits (:func:`~graphattn.mechanisms.connectivity.cube.pair_logits`), in float32, so that nothing is
    clamped and autocast is safe.

    Args:
        preset: ``"connnet"``, ``"biconnet"`` or ``"dconnnet"``: where the weights come from that are not given.
        cube: Weight of BCE(P, Y).
        votes: Weight of BCE(V, Y).
        mask: Weight of BCE(S, m).
        dice: Weight of Dice(S, m).
        edge: Weight of the edge loss, see :func:`edge_loss`.
        smooth: Added above and below in Dice.
        relative_edge: See :func:`edge_loss`.

    Raises:
        ArgumentError: If the preset is unknown or a weight is negative.
    """

    def __init__(
        self,
        preset: str = "connnet",
        *,
        cube: float | None = None,
        votes: float | None = None,
        mask: float | None = None,
        dice: float | None = None,
        edge: float | None = None,
        smooth: float | None = None,
        relative_edge: bool | None = None,
    ) -> None:
        super().__init__()
        if preset not in _PRESETS:
            raise ArgumentError(f"preset must be one of {sorted(_PRESETS)}, got {preset!r}")
        given = {"cube": cube, "votes": votes, "mask": mask, "dice": dice, "edge": edge}
        self.weights = {n: float(_PRESETS[preset].get(n, 0.0) if w is None else w) for n, w in given.items()}
        for name, weight in self.weights.items():
            if weight < 0:
                raise ArgumentError(f"{name} must not be negative, got {weight}")
        self.smooth = _PRESETS[preset].get("smooth", 1e-3) if smooth is None else smooth
        self.relative_edge = bool(_PRESETS[preset].get("relative_edge", 0) if relative_edge is None else relative_edge)

    def forward(self, logits: Tensor, mask: Tensor, labels: Tensor | None = None, part: Tensor | float = 1.0) -> Tensor:
        """The loss.

        Args:
            logits: ``[..., K, H, W]``; for several classes ``[B, C, K, H, W]``, each a binary problem.
            mask: ``[..., H, W]`` of 0 and 1 (not checked).
            labels: bool ``[..., K, H, W]``, default: the cube of the mask. For instances:
                :func:`~graphattn.mechanisms.connectivity.instance_labels`.
            part: Share of the pixels that count, where the others say no for sure: means over all pixels are made means
                over these. Dice and the relative edge loss are ratios of sums, to which the others add nothing.

        Raises:
            ArgumentError: If shapes do not fit.
        """
        ratios = {"dice", "edge"} if self.relative_edge else {"dice"}
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        for name, term in self.terms(logits, mask, labels).items():
            total = total + self.weights[name] * (term if name in ratios else term / part)
        return total

    def terms(self, logits: Tensor, mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The losses that have a weight, by name, before weighting."""
        check_cube("logits", logits)
        shape = [*logits.shape[:-3], *logits.shape[-2:]]
        if list(mask.shape) != shape:
            raise ArgumentError(f"mask must be {shape} for logits {list(logits.shape)}, got {list(mask.shape)}")
        if labels is None:
            labels = connectivity_labels(mask, logits.shape[-3], validate=False)
        elif labels.shape != logits.shape:
            raise ArgumentError(f"labels must have the shape of logits, {list(logits.shape)}, got {list(labels.shape)}")
        wanted = {name for name, weight in self.weights.items() if weight}
        found: dict[str, Tensor] = {}
        with torch.autocast(logits.device.type, enabled=False):
            z, m = logits.float() if logits.dtype != torch.float64 else logits, mask != 0
            true = labels.to(z.dtype)
            if "cube" in wanted:
                found["cube"] = F.binary_cross_entropy_with_logits(z, true)
            if wanted <= {"cube"}:
                return found
            votes = pair_logits(z)
            best = votes.amax(-3)
            if "votes" in wanted:
                found["votes"] = F.binary_cross_entropy_with_logits(votes, true)
            if "mask" in wanted:
                found["mask"] = F.binary_cross_entropy_with_logits(best, m.to(z.dtype))
            if "dice" in wanted:
                found["dice"] = dice_loss(best.sigmoid(), m.to(z.dtype), self.smooth)
            if "edge" in wanted:
                found["edge"] = edge_loss(votes, labels, relative=self.relative_edge)
        return found

    def extra_repr(self) -> str:
        """Shown by ``repr``."""
        return ", ".join(f"{name}={weight:g}" for name, weight in self.weights.items() if weight)


def dice_loss(s: Tensor, mask: Tensor, smooth: float = 1e-3) -> Tensor:
    """:math:`1 - (2 \\sum s m + \\epsilon) / (\\sum s + \\sum m + \\epsilon)` of each image, and their mean.

    Args:
        s: Probabilities ``[..., H, W]``.
        mask: ``[..., H, W]`` of 0 and 1, in the dtype of ``s``.
        smooth: Added above and below.
    """
    both = (s * mask).sum((-2, -1))
    either = s.sum((-2, -1)) + mask.sum((-2, -1))
    return (1.0 - (2.0 * both + smooth) / (either + smooth)).mean()


def edge_loss(votes: Tensor, labels: Tensor, *, relative: bool = False) -> Tensor:
    """A boundary pixel has a neighbour that it is not connected to: its smallest vote should be 0.

    .. math:: \\mathrm{BCE}(\\min_c V_c\\, E,\\, 0), \\qquad E(p) = [0 < \\textstyle\\sum_c Y_c(p) < K]

    Args:
        votes: Logits of the votes ``[..., K, H, W]``.
        labels: The true cube, bool ``[..., K, H, W]``.
        relative: Divide the sum by :math:`\\sum \\min V E`, as in DconnNet (whose reduction before that is unverified;
            the divisor is held constant and at least 1), and not by the number of pixels (BiconNet).
    """
    degree = labels.sum(-3)
    boundary = (degree > 0) & (degree < labels.shape[-3])
    worst = votes.amin(-3)
    loss = F.softplus(worst).masked_fill(~boundary, 0.0)  # -log(1 - min V)
    if relative:
        return loss.sum() / worst.detach().sigmoid().masked_fill(~boundary, 0.0).sum().clamp(min=1.0)
    return loss.mean()
