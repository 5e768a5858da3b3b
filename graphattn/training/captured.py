"""Training steps as CUDA graphs: forward, backward, clipping and optimiser, launched at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch_geometric.data import Batch

from graphattn.errors import ConfigError
from graphattn.nn.norm import BatchNorm, real_rows
from graphattn.training.padding import PaddedBatch, Sizes, room_for, sizes_of

__all__ = ["CapturedSteps", "Step"]

WARM_UP = 2  # eager steps before a capture: kernels are compiled, libraries make their workspaces


class Step(NamedTuple):
    """What a step leaves behind; rows that were filled up are gone."""

    loss: Tensor
    prediction: Tensor
    target: Tensor


class CapturedSteps:
    """A training step of a task on batches of one size, replayed as one CUDA graph.

    Steps on batches of small graphs launch over a thousand kernels of microseconds each, and the host cannot keep up.
    Here every batch is filled up to one size with graphs that nobody reads, which batch norms and losses leave out, so
    that the kernels of one step can be recorded and launched together. A batch that does not fit makes a larger size,
    and a new recording. On the CPU the same steps run one by one.

    Args:
        task: A :class:`~graphattn.training.GraphTask`.
        optimizer: Its optimiser.
        clip: Largest norm of the gradient; ``None``: any.

    Raises:
        ConfigError: If the optimiser cannot be part of a CUDA graph, or a norm of the model does not know about rows
            that were filled up.
    """

    def __init__(self, task: Any, optimizer: Optimizer, clip: float | None = None) -> None:
        _check_norms(task.model)
        self.task, self.optimizer, self.clip = task, optimizer, clip
        self._place: PaddedBatch | None = None
        self._eager = WARM_UP
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: Step | None = None
        self._pairs = _asks_for_pairs(task.model)
        self._largest: Sizes | None = None

    def __call__(self, batch: Batch) -> Step:
        """One step of the optimiser on a batch, as autocast of the caller says."""
        place = self._room(batch)
        place.fill(batch)
        if batch.edge_index.is_cuda:
            self._run_on_device(place)
        else:
            self._found = self._step(place)
        assert self._found is not None
        real = {place.room.nodes: place.real.nodes, place.room.graphs: place.real.graphs}
        rows = real[self._found.prediction.shape[0]]
        # Copies: the next step writes into the same memory.
        return Step(self._found.loss.clone(), self._found.prediction[:rows].clone(), self._found.target[:rows].clone())

    def _room(self, batch: Batch) -> PaddedBatch:
        sizes = sizes_of(batch, self._pairs)
        if self._place is None or not self._place.room.holds(sizes):
            if self._largest is not None:
                sizes = sizes.joined(self._largest)
            self._largest = sizes
            room = room_for(sizes)
            self._graph = self._found = None
            self._eager = max(self._eager, 1)  # kernels of other sizes may have to be compiled, too
            self._place = PaddedBatch(batch, room)
            if not room.holds(sizes_of(batch, self._pairs)):
                raise ConfigError(f"a batch of {sizes} cannot be filled up to {room}: set capture to false")
        return self._place

    def _step(self, place: PaddedBatch) -> Step:
        task = self.task
        with real_rows(place.counts):
            batch = place.ready()
            prediction, target = task.rows(task(batch).float(), batch, "train")
            if prediction.shape[0] not in (place.room.nodes, place.room.graphs):
                raise ConfigError(
                    f"capture needs a prediction for each node or graph of a batch, got {list(prediction.shape)}"
                )
            loss = task.loss(prediction, target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(task.parameters(), self.clip)
        self.optimizer.step()
        return Step(loss.detach(), prediction.detach(), target)

    def _run_on_device(self, place: PaddedBatch) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        # Autocast keeps what it cast; kept over from an eager step, a graph would read weights that nobody casts anew.
        with _uncached_autocast():
            if self._eager > 0:
                self._eager -= 1
                _make_capturable(self.optimizer, place.batch.x.device)
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    self._found = self._step(place)
                torch.cuda.current_stream().wait_stream(stream)
                return
            self.optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._found = self._step(place)
        self._graph = graph
        graph.replay()


def _make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Learning rates on the device, where a schedule can change them, and no step that asks the host."""
    for group in optimizer.param_groups:
        if "capturable" not in group:
            raise ConfigError(
                f"capture needs an optimizer that can be part of a CUDA graph (Adam, AdamW, ...), got "
                f"{type(optimizer).__name__}"
            )
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)
    for state in optimizer.state.values():  # of a run that goes on
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device)


def _asks_for_pairs(model: nn.Module) -> bool:
    return "num_pairs" in inspect.signature(model.forward).parameters


def _check_norms(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, BatchNorm):
            raise ConfigError(
                f"capture fills batches up, and {type(module).__name__} ({name}) would count what is filled up: use "
                "graphattn.nn.BatchNorm there, or set capture to false"
            )


@contextmanager
def _uncached_autocast() -> Iterator[None]:
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
