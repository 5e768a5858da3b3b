"""FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from experiments.benchmarks.peers.base import Call, Peer, Unsupported
from experiments.benchmarks.workloads import Workload

__all__ = ["FLEX", "block_mask"]

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class _Flex(Peer):
    block: ClassVar[int] = 128
    compiles = True

    def build(self, work: Workload) -> Call:
        from torch.nn.attention.flex_attention import flex_attention

        if work.q.device.type == "cpu":
            raise Unsupported("FlexAttention has no backward on the CPU")
        if work.q.shape[-1] < 16:
            raise Unsupported("FlexAttention refuses fewer than 16 channels a head")
        torch._dynamo.reset()
        mask = block_mask(work, self.block)
        flex = torch.compile(flex_attention, dynamic=False)
        ragged = work.q.dim() == 3
        # Its own choice is tiles of 128, which must divide the blocks of the mask.
        options = None if self.block >= 128 else {"BLOCK_M": self.block, "BLOCK_N": self.block}

        def call() -> Tensor:
            q, k, v = (x.unsqueeze(0) if ragged else x for x in (work.q, work.k, work.v))
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out: Any = flex(q, k, v, block_mask=mask, scale=work.scale, kernel_options=options)
            out = out.transpose(1, 2)
            return out.squeeze(0) if ragged else out

        return call


class Flex64(_Flex):
    """Blocks of 64: forward only, its backward has no configuration for them."""

    name = "FlexAttention 64"
    sections = ("W4img",)
    block = 64
    backward = False


class Flex128(_Flex):
    """Blocks of 128, its default."""

    name = "FlexAttention"
    sections = ("W2", "W4", "W4img", "W5", "W6")

    def applies(self, work: Workload) -> bool:
        return work.edge_gate is None


FLEX: tuple[type[Peer], ...] = (Flex128, Flex64)


def block_mask(work: Workload, block: int) -> Any:
    """What ``create_block_mask`` returns, a strip of targets at a time: it would hold N x N integers at once."""
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask

    n, own, device = work.graph.num_tokens, work.graph.mask, work.q.device
    mod = _mask_mod(work)
    if own is not None:
        return create_block_mask(mod, *own.shape[:2], n, n, device=device, BLOCK_SIZE=block)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    blocks = -(-n // block)
    source = torch.arange(blocks * block, device=device)
    some, every = [], []
    for begin in range(0, blocks * block, 8 * block):
        target = source[begin : begin + 8 * block]
        seen = mod(zero, zero, target.clamp(max=n - 1)[:, None], source.clamp(max=n - 1)[None, :])
        seen = seen & (target < n)[:, None] & (source < n)[None, :]
        tiles = seen.view(-1, block, blocks, block)
        some.append(tiles.any(3).any(1))
        every.append(tiles.all(3).all(1))
    partial, full = torch.cat(some) & ~torch.cat(every), torch.cat(every)
    return BlockMask.from_kv_blocks(
        *_ordered(partial), *_ordered(full), BLOCK_SIZE=block, mask_mod=mod, seq_lengths=(n, n)
    )


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles each row has, and which, those first."""
    order = tiles.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return tiles.sum(1)[None, None].int(), order[None, None].int()


def _mask_mod(work: Workload) -> MaskMod:
    graph = work.graph
    if graph.mask is not None:
        own = graph.mask
        return lambda b, h, target, source: own[b, h, target, source]
    if graph.rule is not None:
        rule = graph.rule
        return lambda b, h, target, source: rule(target, source)
    # A ragged batch: tokens of one member, and the adjacency inside it.
    assert graph.ptr is not None
    member = torch.arange(graph.ptr.shape[0] - 1, device=graph.ptr.device).repeat_interleave(graph.ptr.diff())
    start, length = graph.ptr[member], int(graph.ptr.diff().max())
    seen = torch.zeros(graph.num_tokens, length, dtype=torch.bool, device=member.device)
    seen[graph.edges[1], graph.edges[0] - start[graph.edges[1]]] = True

    def adjacency(b: Tensor, h: Tensor, target: Tensor, source: Tensor) -> Tensor:
        same = member[target] == member[source]
        return same & seen[target, torch.where(same, source - start[target], 0)]

    return adjacency
