"""Sparsifiner's two stages: a predictor learns the attention of a dense network, then the network its answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from graphattn.errors import ArgumentError, CheckpointError
from graphattn.mechanisms.reconstruction import predictor_parameters, reconstruct, reconstruction_loss
from graphattn.training.captured import Step
from graphattn.training.checkpoint import load_checkpoint
from graphattn.training.tasks.images import ImageClassification

__all__ = ["Sparsification"]

_WARMUP = 0.05  # of the steps of a stage


class Sparsification(ImageClassification):
    """A vision transformer with sparse attention learns from a dense teacher, in two stages (Wei et al., CVPR 2023).

    Stage 1, ``reconstruction_epochs``: the connectivity predictors learn the attention maps that the network has with
    dense attention; nothing else changes. Where it starts from the teacher's weights, these maps are the teacher's.
    Stage 2: the sparse network learns

    .. math::
        L = \\mathrm{CE}(y) + w_1\\, \\mathrm{KL}(p_{\\mathrm{teacher}} \\,\\|\\, p)
        + w_2\\, \\mathrm{MSE}(\\text{patch rows after the last block})

    and no gradient reaches the predictors. Their masks are not learned any more, but follow the queries and keys.
    Networks that have no predictor (oracle, window, dense or pruned attention) take stage 2 alone.

    On several devices, take the strategy ``"ddp_find_unused_parameters_true"``: each stage leaves the parameters of the
    other without a gradient.

    Args:
        model: A :class:`~graphattn.models.image.VisionTransformer`.
        teacher: The dense network, of the same shape; ``None``: cross-entropy alone.
        teacher_checkpoint: A checkpoint of a task (or of its network) with the teacher's weights.
        start_from_teacher: Give the network the teacher's weights.
        reconstruction_epochs: Epochs of stage 1 (published: 5 of 50).
        reconstruction: ``"mean"`` or ``"sum"``: see :func:`~graphattn.mechanisms.reconstruction.reconstruction_loss`.
        reconstruction_weight: Factor of stage 1 (the released code: 0.01, with ``"sum"``).
        predictor_lr: Learning rate of the predictors, whose weights do not decay (published: 3e-4).
        kl_weight: :math:`w_1`.
        feature_weight: :math:`w_2`.
        **kwargs: Of :class:`~graphattn.training.ImageClassification`. Without ``lr_scheduler``, each stage warms up and
            goes down along a cosine, step by step.

    Raises:
        ArgumentError: If arguments contradict each other.
        CheckpointError: If weights do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None = None,
        teacher_checkpoint: str | None = None,
        start_from_teacher: bool = True,
        reconstruction_epochs: int = 5,
        reconstruction: Literal["mean", "sum"] = "mean",
        reconstruction_weight: float = 1.0,
        predictor_lr: float = 3e-4,
        kl_weight: float = 0.5,
        feature_weight: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        if teacher is None and teacher_checkpoint is not None:
            raise ArgumentError("teacher_checkpoint needs a teacher that takes its weights")
        if reconstruction not in ("mean", "sum"):
            raise ArgumentError(f"reconstruction must be 'mean' or 'sum', got {reconstruction!r}")
        if reconstruction_epochs < 0:
            raise ArgumentError(f"reconstruction_epochs must be 0 or more, got {reconstruction_epochs}")
        self.reconstruction_epochs = reconstruction_epochs if predictor_parameters(model) else 0
        self.reconstruction: Literal["mean", "sum"] = reconstruction
        self.reconstruction_weight, self.predictor_lr = reconstruction_weight, predictor_lr
        self.kl_weight, self.feature_weight = kl_weight, feature_weight
        # In a tuple: the teacher is no part of the state dict, of the optimizer or of what train() reaches.
        self._teacher = (None if teacher is None else copy.deepcopy(teacher).eval().requires_grad_(False),)
        if teacher_checkpoint is not None:
            assert self.teacher is not None
            state = load_checkpoint(Path(teacher_checkpoint))
            state = state.get("state_dict", state)
            inside = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
            _load(self.teacher, inside or state, "teacher_checkpoint")
        if self.teacher is not None and start_from_teacher:
            _load(model, self.teacher.state_dict(), "the teacher")

    @property
    def teacher(self) -> Any:
        """The dense network."""
        return self._teacher[0]

    @property
    def reconstructing(self) -> bool:
        """Whether this is stage 1."""
        return self.current_epoch < self.reconstruction_epochs

    def on_fit_start(self) -> None:
        """The teacher goes where the network is."""
        if self.teacher is not None:
            self.teacher.to(self.device)
        super().on_fit_start()

    def compute(self, batch: Any, stage: str) -> Step:
        """See :meth:`GraphTask.compute`; stage 1 predicts no classes."""
        if stage != "train":
            return super().compute(batch, stage)
        if self.reconstructing:
            found = reconstruct(self.model, batch["x"])
            loss = self.reconstruction_weight * reconstruction_loss(found, self.reconstruction)
            return Step(loss, None, batch["y"])
        loss, logits = self.distillation_loss(batch["x"], batch["y"])
        return Step(loss, logits, batch["y"])

    def recording_key(self) -> Hashable:
        """Stages are recorded apart."""
        return self.reconstructing, super().recording_key()

    def distillation_loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of stage 2 and the class scores ``[B, num_classes]``.

        Args:
            x: Images.
            target: int64 ``[B]`` labels.
        """
        model: Any = self.model
        kept = None
        if hasattr(model, "forward_tokens"):
            rows, kept = model.forward_tokens(x)
        else:
            rows = model.forward_features(x)
        logits = model.forward_head(rows).float()
        loss = self.loss(logits, target)
        if self.teacher is None:
            return loss, logits
        with torch.no_grad():
            their_rows = self.teacher.forward_features(x)
            their_logits = self.teacher.forward_head(their_rows).float()
        if kept is not None:
            their_rows = their_rows.gather(1, kept.unsqueeze(-1).expand(-1, -1, their_rows.shape[-1]))
        divergence = F.kl_div(
            logits.log_softmax(-1), their_logits.log_softmax(-1), reduction="batchmean", log_target=True
        )
        prefix = model.num_prefix_tokens
        distance = F.mse_loss(rows[:, prefix:].float(), their_rows[:, prefix:].float())
        return loss + self.kl_weight * divergence + self.feature_weight * distance, logits

    def configure_optimizers(self) -> Any:
        """One optimizer for both stages: it passes over parameters that have no gradient."""
        learned = predictor_parameters(self.model)
        mine = {id(p) for p in learned}
        groups: list[dict[str, Any]] = [{"params": [p for p in self.parameters() if id(p) not in mine]}]
        if learned:
            groups.append({"params": learned, "lr": self.predictor_lr, "weight_decay": 0.0})
        optimizer = self.optimizer(groups)  # type: ignore[arg-type]
        if self.lr_scheduler is not None:
            return self._scheduled(optimizer)
        steps, border = int(self.trainer.estimated_stepping_batches), 0
        if self.reconstruction_epochs:
            self.trainer.fit_loop.setup_data()  # estimated_stepping_batches does so only where max_epochs is set
            batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
            border = min(steps, self.reconstruction_epochs * math.ceil(min(steps, batches)))
        stages = [_cosine(border, steps), _cosine(0, border)]
        schedule = LambdaLR(optimizer, stages[: len(groups)])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _cosine(begin: int, end: int) -> Callable[[int], float]:
    """Up in a line, down along a cosine, between two steps; 0 elsewhere."""
    warmup = max(1, round(_WARMUP * (end - begin)))

    def factor(step: int) -> float:
        if not begin <= step < end:
            return 0.0
        part = (step - begin) / max(1, end - begin)
        return min(1.0, (step - begin + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * part))

    return factor


def _load(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Weights of a network without predictors."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"the weights of {what} do not fit {type(model).__name__}: {error}") from error
    missing = [key for key in missing if ".predictor." not in key and not key.endswith(".attn.seed")]
    if missing or unexpected:
        raise CheckpointError(
            f"the weights of {what} do not fit {type(model).__name__}: missing {missing[:5]}, "
            f"unexpected {unexpected[:5]}"
        )
