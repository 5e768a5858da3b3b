"""Training steps as CUDA graphs: forward, backward, clipping and optimiser, launched at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch_geometric.data import Batch

from graphattn.errors import ConfigError
from graphattn.nn.norm import BatchNorm, real_rows
from graphattn.training.padding import PaddedBatch, Sizes, TensorBatch, room_for, sizes_of

__all__ = ["CapturedSteps", "Recording", "Step", "make_eager"]

WARM_UP = 2  # eager steps before a capture: kernels are compiled, libraries make their workspaces

T = TypeVar("T")


class Step(NamedTuple):
    """What a step leaves behind; rows that were filled up are gone. No prediction: there is nothing to measure."""

    loss: Tensor
    prediction: Tensor | None
    target: Tensor


class Recording(Generic[T]):
    """A training step that reads and writes tensors which stay where they are: run a few times, then recorded as a CUDA
    graph, then replayed. On the CPU it runs each time.

    Args:
        run: The step, optimizer's part included; what it returns is written over by the next call.
        optimizer: Its optimizer, one that can be part of a CUDA graph.
        device: Where the step runs.
    """

    def __init__(self, run: Callable[[], T], optimizer: Optimizer, device: torch.device | str) -> None:
        self.run, self.optimizer, self.device = run, optimizer, torch.device(device)
        self._eager = WARM_UP
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: T | None = None

    def __call__(self) -> T:
        """One step, as autocast of the caller says."""
        if self.device.type != "cuda":
            return self.run()
        if self._graph is None:
            # Autocast keeps what it cast; kept over from an eager step, a graph would read weights that nobody casts
            # anew.
            with _uncached_autocast():
                if self._eager > 0:
                    self._eager -= 1
                    return self._warm_up()
                self._graph = self._record()
        self._graph.replay()
        assert self._found is not None
        return self._found

    def forget(self) -> None:
        """Record anew, since something that the step depends on is another; kernels may have to be compiled first."""
        self._graph = self._found = None
        self._eager = max(self._eager, 1)

    def _record(self) -> torch.cuda.CUDAGraph:
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._found = self.run()
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise ConfigError(f"this step cannot be part of a CUDA graph ({why}): set capture to false") from error
        return graph

    def _warm_up(self) -> T:
        _make_capturable(self.optimizer, self.device)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            found = self.run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return found


class CapturedSteps:
    """A training step of a task on batches of one size, replayed as one CUDA graph.

    Small steps launch over a thousand kernels of microseconds each, and the host cannot keep up. Here the kernels of
    one step are recorded and launched together, which needs batches of one size. Batches of graphs are filled up to it
    with graphs that nobody reads, which batch norms and losses leave out; one that does not fit makes a larger size,
    and a new recording. Of images, texts and other tensors, a smaller batch (the last of an epoch) runs without a
    recording. On the CPU the same steps run one by one.

    Args:
        task: A :class:`~graphattn.training.GraphTask`.
        optimizer: Its optimiser.
        clip: Largest norm of the gradient; ``None``: any.

    Raises:
        ConfigError: If the optimiser cannot be part of a CUDA graph, or a norm of the model does not know about rows
            that were filled up.
    """

    def __init__(self, task: Any, optimizer: Optimizer, clip: float | None = None) -> None:
        self.task, self.optimizer, self.clip = task, optimizer, clip
        self._place: PaddedBatch | TensorBatch | None = None
        self._recording: Recording[Step] | None = None
        self._key: Hashable = None
        self._pairs = _asks_for_pairs(task.model)
        self._largest: Sizes | None = None

    def __call__(self, batch: Any) -> Step:
        """One step of the optimiser on a batch, as autocast of the caller says."""
        if isinstance(batch, Mapping) and self._is_odd(batch):
            found = self._step(batch)
            return found._replace(loss=found.loss.detach())
        place = self._room(batch)
        place.fill(batch)
        key = self.task.recording_key()
        if self._recording is None:
            self._recording = Recording(self._step_in_place, self.optimizer, place.device)
        elif key != self._key:
            self._recording.forget()
        self._key = key
        found = self._recording()
        # Copies: the next step writes into the same memory.
        loss, target = found.loss.detach().clone(), place.real_rows(found.target).clone()
        prediction = None if found.prediction is None else place.real_rows(found.prediction.detach()).clone()
        return Step(loss, prediction, target)

    def _is_odd(self, batch: Mapping[str, Any]) -> bool:
        """Whether a batch is smaller than those that are recorded."""
        return isinstance(self._place, TensorBatch) and self._place.is_larger_than(batch)

    def _room(self, batch: Any) -> PaddedBatch | TensorBatch:
        place: PaddedBatch | TensorBatch
        if isinstance(batch, Mapping):
            if isinstance(self._place, TensorBatch) and self._place.holds(batch):
                return self._place
            place = TensorBatch(batch)
        else:
            sizes = sizes_of(batch, self._pairs)
            if isinstance(self._place, PaddedBatch) and self._place.room.holds(sizes):
                return self._place
            place = self._larger_room(batch, sizes)
        self._place = place
        if self._recording is not None:
            self._recording.forget()
        return place

    def _larger_room(self, batch: Batch, sizes: Sizes) -> PaddedBatch:
        _check_norms(self.task.model)
        if self._largest is not None:
            sizes = sizes.joined(self._largest)
        self._largest = sizes
        room = room_for(sizes)
        if not room.holds(sizes_of(batch, self._pairs)):
            raise ConfigError(f"a batch of {sizes} cannot be filled up to {room}: set capture to false")
        return PaddedBatch(batch, room)

    def _step_in_place(self) -> Step:
        assert self._place is not None
        with real_rows(self._place.counts):
            return self._step(self._place.ready())

    def _step(self, batch: Any) -> Step:
        task = self.task
        found: Step = task.compute(batch, "train")
        self.optimizer.zero_grad(set_to_none=True)
        found.loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(task.parameters(), self.clip)
        self.optimizer.step()
        return found


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


def make_eager(optimizer: Optimizer) -> None:
    """Undo on the CPU, where torch refuses it, what recorded steps of an earlier part of a run left in its state."""
    for group in optimizer.param_groups:
        if group.get("capturable"):
            group["capturable"] = False
            group["lr"] = float(group["lr"])


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
