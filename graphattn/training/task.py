"""The base of all tasks: a model, an optimizer, a schedule, and what every stage does with a batch."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.cli import ReduceLROnPlateau as LightningPlateau
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchPlateau
from torch_geometric.transforms import BaseTransform
from torchmetrics import Metric

from graphattn.errors import CheckpointError, ConfigError
from graphattn.mechanisms import Subsampled
from graphattn.training.captured import CapturedSteps, Step, make_eager
from graphattn.training.inputs import call_model, num_rows
from graphattn.training.layerwise import layerwise_inference
from graphattn.training.metrics import WeightedMean
from graphattn.training.schedules import WarmupCosine

__all__ = ["GraphTask"]

STAGES = ("train", "val", "test")


class GraphTask(LightningModule):
    """A model with a loss and metrics on batches of graphs; subclasses say which.

    A subclass defines :meth:`rows` (which predictions count, and their targets) and :meth:`loss`, and gives its
    metrics to :meth:`add_metrics`. Logged names are ``train/loss``, ``val/<metric>``, ``test/<metric>`` and so on,
    always over all targets of the epoch and of all devices.

    Args:
        model: Any module, called by the names of its parameters (see :func:`~graphattn.training.inputs.call_model`).
        optimizer: Makes the optimizer from the parameters; ``None``: Adam with learning rate 1e-3.
        lr_scheduler: Makes the schedule from the optimizer, stepped once an epoch; ``ReduceLROnPlateau`` reads its
            ``monitor``. ``None``: a constant rate.
        train_transform: Applied to each training batch on the device, and to no other batch (random sign flips of
            Laplacian encodings, say).
        stop_lr: Training ends once the learning rate falls below this; 0 never.
        capture: On CUDA, run each training step as one CUDA graph
            (:class:`~graphattn.training.captured.CapturedSteps`): several times faster for small steps, which wait
            for the host otherwise. For one device; batches of graphs need losses that leave NaN or -100 out.
    """

    metric: str  # the metric that results are reported in and the best checkpoint is chosen by
    mode: str  # "min" or "max"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        train_transform: BaseTransform | None = None,
        stop_lr: float = 0.0,
        capture: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.capture = capture
        self._captured: CapturedSteps | None = None
        # Not the default of the argument: a config that names AdamW would inherit Adam's other settings.
        self.optimizer = torch.optim.Adam if optimizer is None else optimizer
        self.lr_scheduler = lr_scheduler
        self.train_transform = train_transform
        self.stop_lr = stop_lr
        self._validated_this_epoch = False

    def rows(self, output: Tensor, batch: Any, stage: str) -> tuple[Tensor, Tensor]:
        """Predictions that count in this stage, and their targets, row for row."""
        raise NotImplementedError

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The training loss, a scalar."""
        raise NotImplementedError

    def terms(self, target: Tensor) -> Tensor | int:
        """How many terms the loss is the mean of (labelled ones); by it the losses of several devices are weighed."""
        return (~target.isnan() if target.is_floating_point() else target >= 0).sum()

    def add_metrics(self, metric: str, mode: str, make: Mapping[str, type[Metric] | Any]) -> None:
        """Set the metrics of all stages.

        Args:
            metric: The one that is reported and that chooses the best checkpoint.
            mode: ``"max"`` or ``"min"``.
            make: For each name a callable that makes the ``torchmetrics`` module.
        """
        self.metric, self.mode = metric, mode
        for stage in STAGES:
            self.add_module(f"{stage}_loss", WeightedMean())
            self.add_module(f"{stage}_metrics", nn.ModuleDict({name: create() for name, create in make.items()}))

    @property
    def monitor(self) -> str:
        """The logged name that chooses the best checkpoint."""
        return f"val/{self.metric}"

    def forward(self, batch: Any) -> Tensor:
        """The model's output on a batch; on a graph that asks for it, layer by layer."""
        if "layerwise_rows" in batch:
            return layerwise_inference(self.model, batch, batch.layerwise_rows, self.device)
        return call_model(self.model, batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a training batch, after ``train_transform``."""
        batch = batch if self.train_transform is None else self.train_transform(batch)
        if self._captured is None:
            return self._step(batch, "train")
        return self._record("train", *self._captured(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics of a validation batch."""
        self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics of a test batch."""
        self._step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The model's raw output, float32 on the host; of a sampled neighbourhood its seeds' rows."""
        output = self(batch).float().cpu()
        return output[: batch.batch_size] if "batch_size" in batch else output

    def compute(self, batch: Any, stage: str) -> Step:
        """Loss, predictions that count and their targets. In training it may be recorded: it waits for no value."""
        # Losses and metrics in float32 also where autocast made the output half.
        prediction, target = self.rows(self(batch).float(), batch, stage)
        return Step(self.loss(prediction, target), prediction, target)

    def recording_key(self) -> Hashable:
        """What a recorded step depends on beside its batch; steps are recorded anew when it changes."""
        return tuple(module.setting for module in self.modules() if isinstance(module, Subsampled))

    def _step(self, batch: Any, stage: str) -> Tensor:
        return self._record(stage, *self.compute(batch, stage))

    def _record(self, stage: str, loss: Tensor, prediction: Tensor | None, target: Tensor) -> Tensor:
        self._log_loss(stage, loss, target)
        shared = {"batch_size": num_rows(target), "on_step": False, "on_epoch": True}
        if prediction is not None:
            for name, metric in self.get_submodule(f"{stage}_metrics").items():
                metric.update(prediction.detach(), target)
                self.log(f"{stage}/{name}", metric, prog_bar=stage == "val" and name == self.metric, **shared)
        return self._weighed(loss, target) if stage == "train" else loss

    def _log_loss(self, stage: str, loss: Tensor, target: Tensor) -> None:
        mean = self.get_submodule(f"{stage}_loss")
        mean.update(loss.detach(), self.terms(target))
        shared = {"batch_size": num_rows(target), "on_step": False, "on_epoch": True}
        self.log(f"{stage}/loss", mean, prog_bar=stage == "train", **shared)

    def _weighed(self, loss: Tensor, target: Tensor) -> Tensor:
        """The loss times what makes the mean over devices the mean over all terms of their batches."""
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1:
            return loss
        mine = torch.as_tensor(self.terms(target), dtype=torch.float32, device=self.device)
        everyone = trainer.strategy.reduce(mine.clone(), reduce_op="sum")
        return loss * (mine * trainer.world_size / everyone.clamp(min=1))

    def on_fit_start(self) -> None:
        """Set up captured steps.

        Raises:
            ConfigError: If they cannot do what the trainer is asked to.
        """
        self._captured = None
        if not self.capture or self.device.type != "cuda":
            return
        trainer, asked = self.trainer, None
        if trainer.world_size > 1:
            asked = f"{trainer.world_size} devices"
        elif trainer.accumulate_grad_batches != 1:
            asked = f"accumulate_grad_batches={trainer.accumulate_grad_batches}"
        elif trainer.precision == "16-mixed":
            asked = "precision 16-mixed, which scales losses (bf16-mixed does not)"
        elif trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
            asked = "clipping by value"
        if asked is not None:
            raise ConfigError(f"capture runs a whole step as one CUDA graph, without {asked}: set capture to false")
        optimizer = self.optimizers(use_pl_optimizer=False)
        self._captured = CapturedSteps(self, optimizer, trainer.gradient_clip_val)  # type: ignore[arg-type]

    def on_train_start(self) -> None:
        """Let a run with captured steps go on where there are none."""
        if self.device.type == "cpu":
            for optimizer in self.trainer.optimizers:
                make_eager(optimizer)

    # A captured step has done what Lightning is about to do.

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, unless the step was captured."""
        if self._captured is None:
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's, unless the step was captured."""
        if self._captured is None:
            super().configure_gradient_clipping(*args, **kwargs)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's, unless the step was captured."""
        if self._captured is None:
            super().optimizer_zero_grad(*args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Lightning's, unless the step was captured."""
        if self._captured is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        else:
            optimizer_closure()

    def configure_optimizers(self) -> Any:
        """The optimizer and, if asked for, the schedule."""
        return self._scheduled(self.optimizer(self.parameters()))

    def _scheduled(self, optimizer: Optimizer) -> Any:
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, WarmupCosine) and scheduler.max_epochs is None:
            epochs = self.trainer.max_epochs
            scheduler.max_epochs = epochs if epochs and epochs > 0 else None
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, TorchPlateau):
            config["monitor"] = scheduler.monitor if isinstance(scheduler, LightningPlateau) else "val/loss"
            config["frequency"] = sys.maxsize  # never by Lightning, which asks for its monitor in epochs that have none
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_validation_epoch_end(self) -> None:
        """Remember that there are fresh validation figures."""
        self._validated_this_epoch = not self.trainer.sanity_checking

    def on_train_epoch_end(self) -> None:
        """Step plateau schedules and stop at the smallest learning rate.

        Lightning would step them after the checkpoint of the epoch is written, and a resumed run would lose the step.
        """
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, TorchPlateau) and self._validated_this_epoch:
                value = self.trainer.callback_metrics.get(config.monitor)
                if value is None:
                    known = ", ".join(sorted(self.trainer.callback_metrics))
                    raise ConfigError(f"lr_scheduler monitors {config.monitor!r}, which is not logged; logged: {known}")
                config.scheduler.step(float(value))
        self._validated_this_epoch = False
        rates = [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        if max(rates) < self.stop_lr:
            self.trainer.should_stop = True

    def lr_scheduler_step(self, scheduler: LRScheduler | TorchPlateau, metric: Any) -> None:
        """Step all schedules but plateaus, which :meth:`on_train_epoch_end` has stepped already."""
        if not isinstance(scheduler, TorchPlateau):
            scheduler.step()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, with one clear error where they do not fit.

        Raises:
            CheckpointError: If names or shapes differ from the model's.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint does not fit {type(self.model).__name__}: {error}\n"
                "Use the config.yaml that lies beside the checkpoint."
            ) from error
