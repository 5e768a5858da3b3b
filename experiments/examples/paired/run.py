"""One case with both sides: the same function at the start, trained on the same seeds, timed in turns, memory."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.benchmarks.cpu import resident_peak
from experiments.benchmarks.measure import Timing, peak_mb, summary
from experiments.examples.paired.cases import CASES, OURS, PYG, SIDES, Case, script

__all__ = ["Effort", "Pair", "run_case", "twins"]

_ROOT = Path(__file__).resolve().parents[3]


class Effort(NamedTuple):
    """How much is done for one case."""

    seeds: int = 3
    seconds: float = 3.0
    """About how long both sides are timed."""
    least: int = 10
    """The fewest rounds of timing."""
    length: str = "short"
    """Of training: one of :data:`~experiments.examples.paired.cases.LENGTHS`."""
    synthetic: bool = False
    memory: bool = True


@dataclass
class Pair:
    """What was found of one case; by side, ``"pyg"`` and ``"graphattn"``."""

    case: str
    command: str
    metric: str
    more_is_better: bool
    parameters: int
    loss_difference: float
    """Relative difference of the losses with the same parameters, without dropout."""
    gradient_difference: float
    """Relative L2 difference of all gradients there."""
    scores: dict[str, list[float]] = field(default_factory=dict)
    """The test metric, seed by seed."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Training with its evaluations, seed by seed."""
    ms: dict[str, Timing] = field(default_factory=dict)
    """One forward and backward pass."""
    memory_mb: dict[str, float | None] = field(default_factory=dict)
    """Peak of one forward and backward pass above what was held before it."""


def run_case(case: Case, device: str, effort: Effort) -> Pair:
    """Train, time and weigh both sides of a case.

    Raises:
        DataError: If the data set is not there and cannot be downloaded.
    """
    scripts = {side: script(case.file, side) for side in SIDES}
    argv = case.arguments(device, effort.length, effort.synthetic)
    args = scripts[OURS].parse(argv)
    torch.manual_seed(0)
    data = scripts[OURS].load(args)
    models = twins(scripts, args, data, 0)
    batch = next(iter(data[0])).to(device) if case.batches else data
    passes = {side: _Pass(scripts[side], models[side], batch, case.batches) for side in SIDES}
    loss, gradient = _differences(passes)
    pair = Pair(
        case.name,
        " ".join(["python", f"experiments/examples/{case.file}", *argv]),
        case.metric,
        case.more_is_better,
        sum(x.numel() for x in models[PYG].parameters()),
        loss,
        gradient,
    )
    pair.ms = _take_turns(passes, device, effort)
    if effort.memory:
        pair.memory_mb = {side: _peak(case, side, passes[side], device, effort) for side in SIDES}
    for seed in range(effort.seeds):
        models = twins(scripts, args, data, seed)
        for side in _turn(seed):
            torch.manual_seed(seed)
            begin = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                score = scripts[side].fit(args, models[side], data)
            pair.scores.setdefault(side, []).append(float(score))
            pair.seconds.setdefault(side, []).append(time.perf_counter() - begin)
    return pair


class _Pass:
    """Forward and backward of one batch, in training mode.

    Args:
        module: The script.
        model: Its model.
        batch: What its ``loss_of`` takes.
        fresh: Each pass has a copy of the batch, as training has another batch in each step.
    """

    def __init__(self, module: ModuleType, model: nn.Module, batch: Any, fresh: bool) -> None:
        self.model, self._loss_of, self._batch, self._fresh = model.train(), module.loss_of, batch, fresh
        self.prepare()

    def prepare(self) -> None:
        """What is no part of the pass."""
        self.model.zero_grad()
        self._now = self._batch.clone() if self._fresh else self._batch

    def __call__(self) -> Tensor:
        """The loss."""
        loss: Tensor = self._loss_of(self.model, self._now)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def _turn(number: int) -> tuple[str, ...]:
    """Who is first changes."""
    return SIDES if number % 2 == 0 else SIDES[::-1]


def twins(scripts: dict[str, ModuleType], args: argparse.Namespace, data: Any, seed: int) -> dict[str, nn.Module]:
    """PyG's model as the seed draws it, and ours with its parameters."""
    torch.manual_seed(seed)
    models = {side: scripts[side].build(args, data) for side in SIDES}
    models[OURS].load_state_dict(models[PYG].state_dict())
    return models


def _differences(passes: dict[str, _Pass]) -> tuple[float, float]:
    losses, gradients = {}, {}
    for side, run in passes.items():
        run.prepare()
        run.model.eval()
        losses[side] = float(run())
        found = [torch.zeros_like(x) if x.grad is None else x.grad for x in run.model.parameters()]
        gradients[side] = torch.cat([x.double().flatten() for x in found])
        run.model.train()
    gap = gradients[OURS] - gradients[PYG]
    return abs(losses[OURS] - losses[PYG]) / abs(losses[PYG]), float(gap.norm() / gradients[PYG].norm())


def _take_turns(passes: dict[str, _Pass], device: str, effort: Effort) -> dict[str, Timing]:
    """Medians of rounds in which both sides have one turn each: a busy machine slows them alike."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    times: dict[str, list[float]] = {side: [] for side in passes}
    begin = time.perf_counter()
    for number in range(-3, 500):  # three to warm up
        if number == 0:
            begin = time.perf_counter()
        if number >= effort.least and time.perf_counter() - begin > effort.seconds:
            break
        for side in _turn(number):
            passes[side].prepare()
            wait()
            started = time.perf_counter()
            passes[side]()
            wait()
            if number >= 0:
                times[side].append((time.perf_counter() - started) * 1e3)
    return {side: summary(found) for side, found in times.items()}


def _peak(case: Case, side: str, run: _Pass, device: str, effort: Effort) -> float | None:
    """MB of one pass above what was held before it; ``None`` where the system does not tell."""
    if torch.device(device).type == "cuda":
        run.prepare()
        return peak_mb(run)
    command = [sys.executable, "-m", "experiments.examples.paired.run", case.name, side]
    command += ["--synthetic"] if effort.synthetic else []
    path = [str(_ROOT), *(str(_ROOT / name) for name in ("kernels", "datasets")), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    done = subprocess.run(command, cwd=_ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    try:
        return float(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        print(done.stderr[-1000:], file=sys.stderr)
        return None


def _main() -> None:
    """In a fresh process: one pass of generated data, which loads and compiles everything, then the real one."""
    parser = argparse.ArgumentParser(description="Print the peak resident memory of one pass in MB.")
    parser.add_argument("case")
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--synthetic", action="store_true")
    options = parser.parse_args()
    case = next(case for case in CASES if case.name == options.case)
    module = script(case.file, options.side)

    def make(synthetic: bool) -> _Pass:
        args = module.parse(case.arguments("cpu", "quick", synthetic))
        torch.manual_seed(0)
        data = module.load(args)
        model = module.build(args, data)
        return _Pass(module, model, next(iter(data[0])) if case.batches else data, case.batches)

    with contextlib.redirect_stdout(sys.stderr):
        make(True)()
        peak = resident_peak(make(options.synthetic))
    print(peak)


if __name__ == "__main__":
    _main()
