"""Training on sub-graphs (:class:`graphattn.mechanisms.SSA`): phases, and averages of several passes in evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from graphattn.errors import ConfigError
from graphattn.mechanisms import Subsampled
from graphattn.nn import self_ensemble

__all__ = ["SSAPhases", "SelfEnsembling"]

DEFAULT = ({"keep": 0.25, "fraction": 0.9}, {"keep": 1.0, "fraction": 0.1})


class SSAPhases(Callback):
    """What share of sources :class:`~graphattn.mechanisms.SSA` keeps, phase after phase of a training.

    A phase is ``{"fraction": share of all steps, "keep": r, "scheme": ..., "sigma": ...}``; what it does not name stays
    as it is. ``keep`` may be a pair: from the first to the second, linearly over the phase. Where a run is resumed, the
    step says where it is.

    Args:
        phases: One or more, whose fractions sum to 1; default (ours): 90 % of the steps with 1/4 of the sources, then
            10 % on the whole graph, which closes the gap to evaluation.

    Raises:
        ConfigError: If the fractions do not sum to 1, or a phase names something else.
    """

    def __init__(self, phases: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.phases = [dict(phase) for phase in (DEFAULT if phases is None else phases)]
        for phase in self.phases:
            unknown = sorted(set(phase) - {"fraction", "keep", "scheme", "sigma"})
            if unknown or "fraction" not in phase:
                raise ConfigError(f"a phase must have a fraction, and may have keep, scheme and sigma, got {phase}")
        total = sum(phase["fraction"] for phase in self.phases)
        if abs(total - 1.0) > 1e-6:
            raise ConfigError(f"the fractions of all phases must sum to 1, got {total:g}")

    def at(self, progress: float) -> dict[str, Any]:
        """What holds after a share of all steps, from 0 to 1."""
        begin, number = 0.0, 0
        while number + 1 < len(self.phases) and progress >= begin + self.phases[number]["fraction"] - 1e-12:
            begin += self.phases[number]["fraction"]
            number += 1
        phase = dict(self.phases[number])
        length = phase.pop("fraction")
        keep = phase.get("keep")
        if isinstance(keep, (list, tuple)):
            first, last = keep
            inside = min(max((progress - begin) / length, 0.0), 1.0) if length else 1.0
            phase["keep"] = first + (last - first) * inside
        return phase

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model without SSA now."""
        if not _modules(pl_module):
            raise ConfigError(f"SSAPhases needs a model with an SSA mechanism, {type(pl_module).__name__} has none")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set what holds now."""
        steps = trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise ConfigError("SSAPhases needs to know the end of the training: set max_epochs or max_steps")
        now = self.at(trainer.global_step / steps)
        for module in _modules(pl_module):
            module.set_scheme(**now)


class SelfEnsembling(Callback):
    """Test (and validate) with the average of several passes on drawn sub-graphs, see
    :func:`graphattn.nn.self_ensemble`.

    Args:
        passes: K.
        average: ``"softmax"``, ``"sigmoid"`` or ``"values"``.
        keep: Share of sources that is kept meanwhile; ``None``: what training left.
        seed: Of the sub-graphs, the same in each evaluation.
        validation: In validation too, which costs K times as much.

    Raises:
        ConfigError: If ``keep`` is not given and :class:`SSAPhases` end on the whole graph: all passes were the same.
    """

    def __init__(
        self,
        passes: int = 8,
        average: str = "softmax",
        keep: float | None = None,
        seed: int = 0,
        validation: bool = False,
    ) -> None:
        self.passes, self.average, self.keep, self.seed, self.validation = passes, average, keep, seed, validation
        self._open: ExitStack | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse phases that leave nothing to draw, before a training and not after it."""
        phases = [x for x in trainer.callbacks if isinstance(x, SSAPhases)]  # type: ignore[attr-defined]
        if self.keep is None and any(x.at(1.0).get("keep") == 1.0 for x in phases):
            raise ConfigError(
                "SelfEnsembling averages passes with the keep that training leaves, and SSAPhases end with keep=1.0, "
                "where all passes are the same: give SelfEnsembling a keep, such as 0.25"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to average."""
        if self.validation:
            self._begin(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        if self.validation:
            self._end()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to average."""
        self._begin(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model as it was."""
        self._end()

    def _begin(self, pl_module: LightningModule) -> None:
        self._end()
        stack = ExitStack()
        for module in _modules(pl_module):
            stack.callback(module.set_scheme, module.keep)
            module.set_scheme(self.keep)
        generator = torch.Generator(pl_module.device).manual_seed(self.seed)
        model: Any = pl_module.model
        stack.enter_context(self_ensemble(model, self.passes, average=self.average, generator=generator))
        self._open = stack

    def _end(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _modules(module: torch.nn.Module) -> list[Subsampled]:
    return [part for part in module.modules() if isinstance(part, Subsampled)]
