"""Averages of several passes of one network, each on sub-graphs of its own (Hussain, Zaki & Subramanian, KDD 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphattn.errors import ArgumentError, ArgumentTypeError
from graphattn.mechanisms import sampling

__all__ = ["SelfEnsemble", "self_ensemble"]

AVERAGES = ("softmax", "sigmoid", "values")


class SelfEnsemble:
    """The average of predictions, one after another.

    Args:
        average: ``"softmax"``: probabilities of scores ``[..., C]``; the result is their logarithm, which stands where
            scores stood (the same classes win, and its cross-entropy is that of the averaged probabilities).
            ``"sigmoid"``: probabilities of each entry; the result is their log-odds. ``"values"``: the entries.

    Raises:
        ArgumentError: If there is no such average.
    """

    def __init__(self, average: str = "softmax") -> None:
        if average not in AVERAGES:
            raise ArgumentError(f"average must be one of {AVERAGES}, got {average!r}")
        self.average, self.count = average, 0
        self._sums: tuple[Tensor, ...] = ()

    def add(self, prediction: Tensor) -> None:
        """Add one pass."""
        if not isinstance(prediction, Tensor) or not prediction.is_floating_point():
            raise ArgumentTypeError(f"prediction must be a floating tensor, got {type(prediction).__name__}")
        prediction = prediction if prediction.dtype == torch.float64 else prediction.float()
        if self.average == "softmax":
            terms: tuple[Tensor, ...] = (prediction.log_softmax(-1),)
        elif self.average == "sigmoid":
            terms = (F.logsigmoid(prediction), F.logsigmoid(-prediction))
        else:
            terms = (prediction,)
        if self.count == 0:
            self._sums = terms
        elif self.average == "values":
            self._sums = (self._sums[0] + terms[0],)
        else:
            self._sums = tuple(torch.logaddexp(a, b) for a, b in zip(self._sums, terms, strict=True))
        self.count += 1

    def result(self) -> Tensor:
        """The average so far, in float32 (float64 for float64).

        Raises:
            ArgumentError: If nothing was added.
        """
        if not self.count:
            raise ArgumentError("the average of no prediction is not defined: add one first")
        if self.average == "values":
            return self._sums[0] / self.count
        if self.average == "sigmoid":
            return self._sums[0] - self._sums[1]
        return self._sums[0] - math.log(self.count)


@contextmanager
def self_ensemble(
    model: nn.Module,
    passes: int,
    seed: int | None = None,
    *,
    average: str = "softmax",
    generator: torch.Generator | None = None,
) -> Iterator[nn.Module]:
    """Inside, each call of the model is the average of so many passes, its :class:`~graphattn.mechanisms.SSA` drawing
    sub-graphs in each::

        with self_ensemble(model, 8, seed=0):
            log_probabilities = model(x)

    Dropout stays as the model's mode has it: call :meth:`~torch.nn.Module.eval` first.

    Args:
        model: Any module with an SSA inside that returns one tensor.
        passes: K.
        seed: Of sub-graphs drawn on the CPU, the same on every device; ``None``: ``generator`` says.
        average: See :class:`SelfEnsemble`.
        generator: Source of chance, on the model's device to be quick; default: the global one of the device.

    Raises:
        ArgumentError: If the model has no SSA, or ``passes`` is not positive.
    """
    if passes < 1:
        raise ArgumentError(f"passes must be 1 or more, got {passes}")
    if seed is not None and generator is not None:
        raise ArgumentError("give seed or generator, not both")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    SelfEnsemble(average)  # says now what is wrong with it
    inside = False

    def average_passes(module: nn.Module, args: Any, kwargs: Any, first: Any) -> Any:
        nonlocal inside
        if inside:
            return None
        inside = True
        try:
            mean = SelfEnsemble(average)
            mean.add(first)
            for _ in range(passes - 1):
                mean.add(module(*args, **kwargs))
            return mean.result()
        finally:
            inside = False

    with sampling(model, True, generator):
        handle = model.register_forward_hook(average_passes, with_kwargs=True)
        try:
            yield model
        finally:
            handle.remove()
