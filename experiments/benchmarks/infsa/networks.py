"""Whole vision transformers, width 1024, 16 heads, 4 layers, patches of 16: one image of ``side`` x ``side`` pixels."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.benchmarks.infsa.stopwatch import Stopwatch
from graphattn.models.image import VisionTransformer

__all__ = ["ATTENTIONS", "forwards", "network_name", "training_step"]

ATTENTIONS = ("softmax", "infsa", "linear_infsa")
_PATCH = 16


def network_name(tokens: int) -> str:
    """Of a row's workload."""
    return f"network {tokens}"


def forwards(tokens: int, watch: Stopwatch, width: int = 1024) -> None:
    """Rows of the forward pass in bfloat16 over ``tokens`` patches."""
    images = _images(tokens, watch.device).to(torch.bfloat16)
    for attention in ATTENTIONS:
        model = _model(tokens, attention, watch.device, width).to(torch.bfloat16).eval().requires_grad_(False)
        watch.measure(
            network_name(tokens),
            attention,
            "forward",
            partial(model, images),
            check=_not_finite,
            expected=_expected(watch, attention, tokens),
            text=f"weights {_megabytes(model):,.0f} MB",
        )
        del model
        watch.forget()


def training_step(tokens: int, watch: Stopwatch, attentions: tuple[str, ...] = ATTENTIONS, width: int = 1024) -> None:
    """Rows of a step of AdamW: float32 weights, bfloat16 autocast, one image. The memory is that of the step, beside
    weights and state of the optimiser."""
    images, label = _images(tokens, watch.device), torch.zeros(1, dtype=torch.long, device=watch.device)
    for attention in attentions:
        model = _model(tokens, attention, watch.device, width)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=watch.device.type == "cuda")
        step = partial(_step, model, optimizer, images, label)
        watch.measure(
            network_name(tokens),
            attention,
            "training step",
            step,
            check=_not_finite,
            capture=False,
            text=f"weights and their moments {3 * _megabytes(model):,.0f} MB",
        )
        del model, optimizer, step
        watch.forget()


def _images(tokens: int, device: torch.device) -> Tensor:
    side = _PATCH * math.isqrt(tokens)
    return torch.randn(1, 3, side, side, generator=torch.Generator(device).manual_seed(0), device=device)


def _model(tokens: int, attention: str, device: torch.device, width: int) -> nn.Module:
    torch.manual_seed(0)
    with device:
        return VisionTransformer(
            img_size=_PATCH * math.isqrt(tokens),
            patch_size=_PATCH,
            embed_dim=width,
            depth=4,
            num_heads=16,
            class_token=False,
            global_pool="avg",
            attention=attention,
        )


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, label: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16):
        loss = F.cross_entropy(model(images), label)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # here, so that the memory of gradients is in that of the step
    return loss.detach()


def _not_finite(result: Tensor) -> float:
    return 0.0 if bool(torch.isfinite(result).all()) else float("inf")


def _megabytes(model: nn.Module) -> float:
    return sum(x.nbytes for x in model.parameters()) / 2**20


def _expected(watch: Stopwatch, attention: str, tokens: int) -> float | None:
    """Seconds, from the largest time there is."""
    known = [row for row in watch.rows if row.peer == attention and row.what == "forward" and row.ms is not None]
    if not known:
        return None
    before = int(known[-1].workload.split()[1])
    return known[-1].ms / 1e3 * (tokens / before) ** (1 if attention == "linear_infsa" else 2)  # type: ignore[operator]
