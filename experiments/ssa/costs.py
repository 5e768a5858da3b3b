"""Time and peak memory of a training step, alone on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from experiments.ssa.build import data_of, load_config, task_of
from experiments.ssa.work import Variant
from graphattn.mechanisms import SSA

__all__ = ["measure_steps"]


def measure_steps(task: str, variants: Sequence[Variant], *, quick: bool) -> dict[str, dict[str, float | None]]:
    """For each variant: median milliseconds of forward, backward and drawing, and MiB at the peak above what model,
    optimizer and batch hold (``None`` on a CPU)."""
    config = load_config(task, quick=quick)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = data_of(config, 0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    warm, timed = (1, 2) if quick or device.type == "cpu" else (10, 30)
    found = {}
    for variant in variants:
        torch.manual_seed(0)
        module = task_of(config).to(device).train()
        here = module.transfer_batch_to_device(batch, device, 0)
        for part in module.modules():
            if isinstance(part, SSA):
                part.set_scheme(variant.keep, variant.scheme)
        half = device.type == "cuda" and "bf16" in str(config["trainer"].get("precision", ""))
        found[variant.name] = _measure(module, here, half, warm, timed)
    return found


def _measure(task: Any, batch: Any, half: bool, warm: int, timed: int) -> dict[str, float | None]:
    cuda = task.device.type == "cuda"

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            output = task(batch)
        task.loss(*task.rows(output.float(), batch, "train")).backward()
        for parameter in task.parameters():
            parameter.grad = None

    for _ in range(warm):
        step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = []
    for _ in range(timed):
        begin = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else None
    return {"step_ms": 1e3 * statistics.median(times), "peak_mib": peak}
