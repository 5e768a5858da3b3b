"""Tile sizes and launches. No autotuning: sizes stand in a table, so only the first call is slow."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graphattn_kernels._triton import aligned, dense_rows, guard, launch, next_power_of_2, padded, strides_of
from graphattn_kernels.list_attention.impl.triton.backward import column_kernel, row_kernel, sum_kernel
from graphattn_kernels.list_attention.impl.triton.forward import attend_kernel
from graphattn_kernels.list_attention.impl.triton.transpose import transpose
from graphattn_kernels.lists import SourceLists

__all__ = ["Config", "backward", "configure", "forward"]

# Numbers of one sum that a program of one warp holds. Transposing and summing 10 % of 4,096 and of 16,384 keys takes 35
# and 372 us on an H200, with 1024 numbers and two warps 49 and 451.
_SUM_CHANNELS = 256


class Config(NamedTuple):
    """How a kernel runs."""

    rows: int
    """Targets of a program, or of a step in the column pass."""
    columns: int
    """Entries of a list of a step, or of a program in the column pass."""
    warps: int
    stages: int
    registers: int | None = None
    """A cap for each thread: more programs at a time hide more latency."""


# For each kernel, the sizes up to so many bytes of a row (of one head, padded to a power of 2). Chosen by what the
# compiler says for compute capability 9.0 (nothing spilled where half types are used); those of 128 bytes the fastest
# of a dozen on an H200 for lists of 10 % of 4,096 to 16,384 keys. The cap gives 4 programs a multiprocessor, not 3.
_HALF = {
    attend_kernel: {128: Config(128, 64, 8, 2, 128), 256: Config(128, 64, 8, 2), 512: Config(64, 32, 4, 2)},
    row_kernel: {128: Config(64, 64, 4, 3), 256: Config(64, 32, 4, 2), 512: Config(32, 32, 4, 1)},
    column_kernel: {128: Config(64, 64, 4, 2), 256: Config(64, 64, 8, 2), 512: Config(32, 32, 4, 1)},
}
# Without tensor cores (unless tf32 is allowed), products take twice the registers.
_FLOAT32 = {
    attend_kernel: {128: Config(64, 32, 4, 2), 256: Config(64, 32, 8, 2)},
    row_kernel: {128: Config(32, 32, 4, 1), 256: Config(32, 32, 8, 1)},
    column_kernel: {128: Config(32, 32, 4, 1)},
}
_WIDEST = Config(32, 16, 8, 1)


@lru_cache(256)
def configure(kernel: Any, block: int, width: int, dtype: torch.dtype) -> Config:
    """The sizes for a kernel, a block of targets, and the padded channels of one head."""
    table = (_FLOAT32 if dtype == torch.float32 else _HALF)[kernel]
    config = next((config for limit, config in table.items() if width * dtype.itemsize <= limit), _WIDEST)
    rows = min(config.rows, max(16, next_power_of_2(block)))
    return config._replace(rows=rows, warps=max(4, config.warps * rows // config.rows))


class _Call:
    """The arguments that the kernels take, prepared once."""

    def __init__(self, lists: SourceLists, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None) -> None:
        if clamp is None and scale <= 0.0:  # the kernels' short way needs a positive scale
            clamp = float("inf")
        self.index = aligned(lists.index.contiguous())
        self.length, self.target = (
            None if x is None else aligned(x.contiguous()) for x in (lists.length, lists.target)
        )
        self.lists = lists._replace(index=self.index, length=self.length, target=self.target)
        self.inputs = q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
        self.batch, self.targets, self.heads, self.width = q.shape
        self.v_width = v.shape[3]
        strides, self.align = strides_of(q.dtype, *((x.shape, x.stride()) for x in self.inputs))
        stride = self.target.shape[1] if self.target is not None and self.target.shape[0] > 1 else 0
        self.sizes = lists.room, lists.num_targets, lists.num_sources, stride, self.heads
        self.rest = (*strides, scale, clamp or 0.0)
        self.clamped = clamp is not None
        self.reads = ("before" if lists.own else "until") if lists.causal else "others" if lists.own else None

    def config(self, kernel: Any) -> Config:
        """Sizes for this call."""
        width = max(padded(self.width), padded(self.v_width))
        return configure(kernel, self.lists.block, width, self.inputs[0].dtype)

    def widths(self) -> dict[str, Any]:
        """Constexpr widths."""
        return {
            "D": self.width,
            "DV": self.v_width,
            "DP": padded(self.width),
            "DVP": padded(self.v_width),
        }

    def constants(self, config: Config) -> dict[str, Any]:
        """The constexpr arguments of a kernel."""
        return {
            **self.widths(),
            "M": config.rows,
            "N": config.columns,
            "LEADING": self.lists.leading,
            "READS": self.reads,
            "CLAMPED": self.clamped,
            "ALIGN": self.align,
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
            "num_warps": config.warps,
            "num_stages": config.stages,
        } | ({} if config.registers is None else {"maxnreg": config.registers})

    def ends(self, rows: int) -> Tensor | None:
        """int32 ``[copies, blocks, strips]``: where each strip of ``rows`` targets may stop; ``None``: nowhere."""
        lists = self.lists
        strips = -(-lists.block // rows)
        if not lists.causal:
            if self.length is None:
                return None
            return self.length if strips == 1 else self.length.unsqueeze(-1).expand(-1, -1, strips).contiguous()
        places = lists.places()
        places = torch.nn.functional.pad(places, (0, strips * rows - lists.block), value=-1)
        last = places.view(places.shape[0], lists.blocks, strips, rows).amax(-1)
        index = lists.index.long()
        used = lists.used()
        if used is not None:
            index = index.masked_fill(~used, lists.num_sources)
        # The lists of causal graphs ascend, so what stands after the last target ends the list.
        last = last.expand(lists.index.shape[0], -1, -1).contiguous()
        return torch.searchsorted(index, last, right=True, out_int32=True)

    def by_rows(self, kernel: Any, arrays: tuple[Any, ...], config: Config, ends: Tensor | None) -> None:
        """Launch over strips of the blocks of targets, which stop at ``ends``."""
        strips = -(-self.lists.block // config.rows)
        launch(
            kernel,
            (self.batch * self.heads * self.lists.blocks * strips, 1, 1),
            (*self.inputs, *arrays, self.index, ends, self.target)
            + (self.lists.blocks, self.lists.block, strips, *self.sizes, *self.rest),
            self.constants(config),
        )

    def by_entries(self, arrays: tuple[Any, ...]) -> None:
        """Launch the column pass over the entries of the lists."""
        config = self.config(column_kernel)
        chunks = -(-self.lists.room // config.columns)
        launch(
            column_kernel,
            (self.batch * self.heads * self.lists.blocks * chunks, 1, 1),
            (*self.inputs, *arrays, self.index, self.length, self.target)
            + (chunks, self.lists.blocks, self.lists.block, *self.sizes, *self.rest),
            self.constants(config),
        )


def forward(
    lists: SourceLists, q: Tensor, k: Tensor, v: Tensor, scale: float, clamp: float | None
) -> tuple[Tensor, Tensor]:
    """See the API, but for ``own``, which is left to it. Returns output and log-sum-exp."""
    with guard(q):
        call = _Call(lists, q, k, v, scale, clamp)
        whole = lists.target is None
        out = (v.new_empty if whole else v.new_zeros)((*q.shape[:3], call.v_width))
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        if not whole:  # somebody may stand nowhere
            lse.fill_(float("-inf"))
        config = call.config(attend_kernel)
        call.by_rows(attend_kernel, (out, lse), config, call.ends(config.rows))
    return out, lse


def backward(
    lists: SourceLists,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    clamp: float | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    with guard(q):
        call = _Call(lists, q, k, v, scale, clamp)
        saved = out, lse, aligned(grad_out.contiguous()), None if grad_lse is None else aligned(grad_lse.contiguous())
        grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        if lists.target is not None:
            grad_q.zero_()
        grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
        entries = (q.shape[0] * q.shape[2], lists.blocks, lists.room)
        parts = k.new_empty((*entries, call.width)), v.new_empty((*entries, call.v_width))
        config = call.config(row_kernel)
        fused, ends, written = lists.block <= config.rows, call.ends(config.rows), call.lists
        call.by_rows(row_kernel, (*saved, grad_q, *(parts if fused else (None, None))), config, ends)
        if not fused:
            call.by_entries((*saved, *parts))
        elif ends is not None:  # entries that stand after all targets of their block have no part
            written = written._replace(length=ends.view(ends.shape[:2]))
        count, entry = transpose(written)
        sources = max(1, _SUM_CHANNELS // max(padded(call.width), padded(call.v_width)))
        chunks = -(-lists.num_sources // sources)
        sizes = (chunks, lists.blocks, lists.room, entry.shape[1], lists.num_sources, call.heads)
        launch(
            sum_kernel,
            (q.shape[0] * call.heads * chunks, 1, 1),
            (grad_k, grad_v, *parts, count, entry, *sizes),
            {**call.widths(), "N": sources, "LEADING": lists.leading, "num_warps": 1, "num_stages": 2},
        )
    return grad_q, grad_k, grad_v
