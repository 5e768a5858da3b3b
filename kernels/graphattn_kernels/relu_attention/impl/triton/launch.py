"""Tile sizes and launches. No autotuning: sizes stand in a table, so only the first call is slow."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._members import Members
from graphattn_kernels._members_triton import num_slots
from graphattn_kernels._triton import aligned, dense_rows, guard, launch, padded, strides_of
from graphattn_kernels.relu_attention.impl.triton.backward import along_kernel, column_kernel, row_kernel
from graphattn_kernels.relu_attention.impl.triton.forward import attend_kernel, divide_kernel

__all__ = ["Config", "Scale", "backward", "configure", "forward"]

_ALONG_ROWS = 128  # targets of a program that sums g y


class Config(NamedTuple):
    """How a kernel runs."""

    rows: int
    """Rows that a program has."""
    columns: int
    """Rows of the other side that a step takes."""
    warps: int
    stages: int
    registers: int | None = None
    """A cap for each thread: more programs at a time hide more latency."""


# For each kernel, the sizes up to so many bytes of a row (of one head, padded to a power of 2). Half types up to 64
# channels by time, the fastest of 13 to 18 for 4k to 16k tokens and 8 heads of 64 on an H200 (of 16k: 0.97, 1.27 and
# 1.75 ms, 568, 648 and 627 TFLOP/s). The others by what the compiler says for compute capability 9.0 (two programs or
# more on a multiprocessor where possible, nothing spilled, save float32 without tf32 from 128 channels on).
_HALF = {
    attend_kernel: {128: Config(128, 64, 8, 3), 256: Config(128, 64, 8, 3), 512: Config(64, 64, 8, 2)},
    row_kernel: {128: Config(128, 64, 8, 3, 128), 256: Config(64, 64, 4, 2), 512: Config(64, 32, 8, 2)},
    column_kernel: {128: Config(64, 64, 4, 3), 256: Config(64, 32, 4, 3), 512: Config(32, 32, 8, 1)},
}
# Without tensor cores (unless tf32 is allowed), products take twice the registers.
_FLOAT32 = {
    attend_kernel: {128: Config(64, 32, 4, 2), 256: Config(64, 32, 8, 2)},
    row_kernel: {128: Config(64, 32, 4, 2), 256: Config(64, 32, 8, 2)},
    column_kernel: {128: Config(32, 32, 4, 2)},
}
_WIDEST = Config(32, 32, 8, 1)


@lru_cache(256)
def configure(kernel: Any, width: int, dtype: torch.dtype) -> Config:
    """The sizes for a kernel and the padded channels of one head."""
    table = (_FLOAT32 if dtype == torch.float32 else _HALF)[kernel]
    return next((config for limit, config in table.items() if width * dtype.itemsize <= limit), _WIDEST)


class Scale(NamedTuple):
    """A factor of the scores as a product: the kernels multiply q or k, whose dtype holds that exactly, by the first;
    sums get the second."""

    factor: float
    """With the sign; 2 ** n, so that half types do not round, with n small, so that they do not overflow."""
    rest: float
    """Positive."""

    @staticmethod
    @lru_cache(256)
    def of(scale: float) -> Scale:
        """The parts of ``scale``."""
        if scale == 0.0:
            return Scale(0.0, 1.0)
        exponent = max(-8, min(8, math.frexp(abs(scale))[1] - 1))
        return Scale(math.copysign(2.0**exponent, scale), abs(scale) / 2.0**exponent)


class _Kind(NamedTuple):
    """What the kernels are compiled for."""

    dtype: torch.dtype
    device: int
    width: int
    v_width: int
    causal: bool
    tf32: bool
    align: int
    """A power of 2 that divides every stride, up to what 16 bytes hold."""
    wide: tuple[bool, ...]
    """Which strides need 64 bits."""
    members: tuple[torch.dtype | None, ...]


class _Call:
    """The arguments that the kernels take, prepared once."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, members: Members, scale: float, causal: bool) -> None:
        self.inputs = q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        self.members = Members(*(None if x is None else aligned(x.contiguous()) for x in members))
        self.count = members.count(q)
        self.targets, self.sources, self.heads = q.shape[1], k.shape[1], q.shape[2]
        self.width, self.v_width = q.shape[3], v.shape[3]
        self.scale = Scale.of(scale)
        strides, align = strides_of(q.dtype, *((x.shape, x.stride()) for x in self.inputs))
        self.sizes = self.count, self.targets, self.sources, self.heads, *strides
        self.kind = _Kind(
            q.dtype,
            q.get_device(),
            self.width,
            self.v_width,
            causal,
            torch.backends.cuda.matmul.allow_tf32,
            align,
            tuple([n >= 2**31 for n in strides]),
            tuple([None if x is None else x.dtype for x in members]),
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to sum, so that everything is zero."""
        return 0 in (self.count, self.targets, self.sources, self.heads, self.width)

    def config(self, kernel: Any) -> Config:
        return configure(kernel, max(padded(self.width), padded(self.v_width)), self.kind.dtype)

    def target_slots(self, rows: int) -> int:
        return num_slots(self.members.target_ptr, self.count, self.targets, rows)

    def source_slots(self, rows: int) -> int:
        return num_slots(self.members.source_ptr, self.count, self.sources, rows)

    def run(self, kernel: Any, slots: int, arrays: tuple[Any, ...], *numbers: float) -> None:
        """Launch one of the kernels with tiles."""
        config, kind = self.config(kernel), self.kind
        constants = {
            "D": kind.width,
            "DV": kind.v_width,
            "DP": padded(kind.width),
            "DVP": padded(kind.v_width),
            "M": config.rows,
            "N": config.columns,
            "CAUSAL": kind.causal,
            "ALIGN": kind.align,
            "PRECISION": "tf32" if kind.tf32 else "ieee",
            "num_warps": config.warps,
            "num_stages": config.stages,
        }
        if config.registers is not None:
            constants["maxnreg"] = config.registers
        launch(
            kernel,
            (slots * self.heads, 1, 1),
            (*self.inputs, *arrays, *self.members, slots, *self.sizes, *numbers),
            constants,
            (kind, config, tuple([x is None for x in arrays])),
        )

    def run_rows(self, kernel: Any, slots: int, rows: int, arrays: tuple[Any, ...], *numbers: float) -> None:
        """Launch one of the kernels without tiles."""
        constants = {"DV": self.v_width, "DVP": padded(self.v_width), "M": rows, "num_warps": 4, "num_stages": 1}
        launch(
            kernel,
            (slots * self.heads, 1, 1),
            (*arrays, slots, self.count, self.targets, self.heads, *numbers),
            constants,
            (self.kind, rows),
        )


def forward(
    q: Tensor, k: Tensor, v: Tensor, members: Members, scale: float, causal: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """See the API. Returns output and norm."""
    with guard(q):
        call = _Call(q, k, v, members, scale, causal)
        shape, norms = (*q.shape[:3], call.v_width), (call.count, call.heads)
        if call.empty:
            return v.new_zeros(shape), q.new_zeros(norms, dtype=torch.float32)
        out, norm = v.new_empty(shape), q.new_empty(norms, dtype=torch.float32)
        rows = call.config(attend_kernel).rows
        slots = call.target_slots(rows)
        square = norm.new_empty((call.heads, slots))
        # Nobody knows yet what to divide by, and half types would round twice, or overflow.
        unnormalised = out if out.dtype == torch.float32 else out.new_empty(shape, dtype=torch.float32)
        call.run(attend_kernel, slots, (unnormalised, square), call.scale.factor)
        arrays = out, unnormalised, square, norm, call.members.target_ptr
        call.run_rows(divide_kernel, slots, rows, arrays, call.scale.rest, eps)
    return out, norm


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    members: Members,
    scale: float,
    causal: bool,
    eps: float,
    out: Tensor,
    norm: Tensor,
    grad_out: Tensor,
    grad_norm: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    with guard(q):
        call = _Call(q, k, v, members, scale, causal)
        if call.empty:
            zeros = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
            return zeros[0], zeros[1], zeros[2]
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        out, grad_out = aligned(out.contiguous()), aligned(grad_out.contiguous())
        norm = aligned(norm.contiguous())
        grad_norm = None if grad_norm is None else aligned(grad_norm.contiguous())
        slots = call.target_slots(_ALONG_ROWS)
        along = norm.new_empty((call.heads, slots))
        arrays = out, grad_out, along, call.members.target_lengths, call.members.target_ptr
        call.run_rows(along_kernel, slots, _ALONG_ROWS, arrays)
        saved = grad_out, along, norm, grad_norm
        numbers = slots, _ALONG_ROWS, *call.scale, eps
        rows = call.config(row_kernel).rows
        call.run(row_kernel, call.target_slots(rows), (*saved, grad_q), *numbers)
        rows = call.config(column_kernel).rows
        call.run(column_kernel, call.source_slots(rows), (*saved, grad_k, grad_v), *numbers)
    return grad_q, grad_k, grad_v
