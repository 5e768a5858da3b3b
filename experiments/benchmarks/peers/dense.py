"""PyTorch's ``scaled_dot_product_attention``, with a mask or without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.benchmarks.peers.base import Call, Peer, Unsupported
from experiments.benchmarks.workloads import Workload

__all__ = ["SDPA"]

Change = Callable[[Tensor], Tensor]

_MOST_PAIRS = 20_000**2  # beyond this a dense mask is no sensible way


class Sdpa(Peer):
    """``scaled_dot_product_attention``; a ragged batch is padded (packing and unpacking are part of the call)."""

    kernel: ClassVar[str | None] = None
    mask: ClassVar[str | None] = None

    def applies(self, work: Workload) -> bool:
        return work.edge_gate is None

    def build(self, work: Workload) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kernels = {
            "cuDNN": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
        if self.kernel is not None and work.q.device.type == "cpu":
            raise Unsupported(f"the {self.kernel} kernel is for CUDA")
        pack, unpack, mask = _padding(work) if work.graph.ptr is not None else _plain(work, self.mask is not None)
        if mask is not None and self.mask == "bias":
            mask = torch.zeros(mask.shape, dtype=work.q.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)

        def call() -> Tensor:
            with nullcontext() if self.kernel is None else sdpa_kernel(kernels[self.kernel]):
                out = F.scaled_dot_product_attention(
                    pack(work.q), pack(work.k), pack(work.v), attn_mask=mask, scale=work.scale
                )
            return unpack(out)

        return call


def _plain(work: Workload, masked: bool) -> tuple[Change, Change, Tensor | None]:
    mask = None
    if masked:
        if work.graph.num_tokens**2 > _MOST_PAIRS:
            raise Unsupported(f"a dense mask of {work.graph.num_tokens} x {work.graph.num_tokens}")
        dense = work.graph.dense
        mask = _aligned(dense if dense.dim() == 4 else dense[None, None])
    return lambda x: x.transpose(-3, -2), lambda x: x.transpose(-3, -2), mask


def _aligned(mask: Tensor) -> Tensor:
    """Rows that begin at multiples of 16, which the kernels want of a mask; the same values."""
    n = mask.shape[-1]
    room = mask.new_zeros(*mask.shape[:-1], -(-n // 16) * 16)
    room[..., :n] = mask
    return room[..., :n]


def _padding(work: Workload) -> tuple[Change, Change, Tensor]:
    """Every member of the batch in a row of the length of the longest."""
    ptr = work.graph.ptr
    assert ptr is not None
    size = ptr.diff()
    batch, length = size.shape[0], -(-int(size.max()) // 16) * 16
    member = torch.arange(batch, device=ptr.device).repeat_interleave(size)
    place = member * length + torch.arange(work.graph.num_tokens, device=ptr.device) - ptr[member]
    mask = torch.zeros(batch, 1, length, length, dtype=torch.bool, device=ptr.device)
    source, target = work.graph.edges
    mask[member[target], 0, place[target] % length, place[source] % length] = True

    def pack(x: Tensor) -> Tensor:
        rows = x.new_zeros(batch * length, *x.shape[1:]).index_copy(0, place, x)
        return rows.view(batch, length, *x.shape[1:]).transpose(1, 2)

    def unpack(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1).index_select(0, place)

    return pack, unpack, mask


def _sdpa(kernel: str | None, mask: str | None, sections: tuple[str, ...]) -> type[Sdpa]:
    name = "SDPA" + "".join(f" {word}" for word in (kernel, {"bool": "mask"}.get(mask or "", mask)) if word)
    return type("Sdpa", (Sdpa,), {"name": name, "kernel": kernel, "mask": mask, "sections": sections})


SDPA: tuple[type[Peer], ...] = (
    _sdpa(None, "bool", ("W2", "W4", "W4img", "W5")),
    _sdpa("efficient", "bias", ("W5",)),
    _sdpa("cuDNN", "bias", ("W5",)),
    _sdpa("cuDNN", None, ("W6",)),
    _sdpa("flash", None, ("W6",)),
    _sdpa("efficient", None, ("W6",)),
)
