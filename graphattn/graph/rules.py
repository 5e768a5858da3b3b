"""The simple patterns, one class each: what :mod:`graphattn.graph.patterns` makes."""

from __future__ import annotations

import torch
from torch import Tensor

from graphattn.graph.csr import Csr, batch_vector
from graphattn.graph.pattern import Pattern, csr_from_ranges

__all__ = ["Blocks", "Causal", "Complete", "Device", "Hubs", "Prefix", "Window"]

Device = torch.device | str | None


class Complete(Pattern):
    """Every target reads every source. Made by :func:`complete`."""

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return (target >= 0) & (source >= 0)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        every = self.contains(t_first, s_first)
        return every, every

    @property
    def num_edges(self) -> int:
        return self._num_targets * self._num_sources

    @property
    def known_symmetric(self) -> bool:
        return self.is_square

    def transposed(self) -> Pattern:
        return Complete(self._num_sources, self._num_targets, device=self.device)

    def _enumerate(self) -> Csr:
        count = torch.full((self._num_targets,), self._num_sources, device=self.device)
        return csr_from_ranges(torch.zeros_like(count), count, self._num_sources, self.num_edges)


class Prefix(Pattern):
    """Every token reads the first ``size`` tokens, itself and what is before it. Made by :func:`prefix`."""

    _static_fields = (*Pattern._static_fields, "size")

    def __init__(self, num_tokens: int, size: int, device: Device) -> None:
        super().__init__(num_tokens, num_tokens, device=device)
        self.size = size

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return (source < self.size) | (source <= target)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        # Each source that is read is read by all later targets, and each target reads all earlier sources.
        return self.contains(t_last, s_first), self.contains(t_first, s_last)

    @property
    def num_edges(self) -> int:
        n, k = self._num_targets, self.size
        return k * k + (n * (n + 1) - k * (k + 1)) // 2

    @property
    def known_causal(self) -> bool:
        return self.size <= 1

    def _enumerate(self) -> Csr:
        token = torch.arange(self._num_targets, device=self.device)
        count = (token + 1).clamp(min=self.size)
        return csr_from_ranges(torch.zeros_like(token), count, self._num_sources, self.num_edges)


class Causal(Prefix):
    """Every token reads itself and what is before it. Made by :func:`causal`."""

    _static_fields = Pattern._static_fields
    size = 0

    def __init__(self, num_tokens: int, device: Device) -> None:
        Pattern.__init__(self, num_tokens, num_tokens, device=device)

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return source <= target


class Window(Pattern):
    """Every token reads itself and its neighbours in a sequence. Made by :func:`window`, :func:`strided`."""

    _static_fields = (*Pattern._static_fields, "size", "dilation", "causal")

    def __init__(self, num_tokens: int, size: int, dilation: int, causal: bool, device: Device) -> None:
        super().__init__(num_tokens, num_tokens, device=device)
        self.size = size
        self.dilation = dilation
        self.causal = causal

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        distance = target - source
        reach = self.size * self.dilation
        inside = (distance <= reach) & (distance >= (0 if self.causal else -reach))
        return inside if self.dilation == 1 else inside & (distance % self.dilation == 0)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        low, high = t_first - s_last, t_last - s_first  # every distance between occurs
        far = self.size * self.dilation
        near = 0 if self.causal else -far
        every = (low >= near) & (high <= far)
        if self.dilation == 1:
            return (low <= far) & (high >= near), every
        step = high.clamp(max=far) // self.dilation * self.dilation  # the largest distance that is read, if any is
        return step >= low.clamp(min=near), every & (low == high) & (step == high)

    @property
    def num_edges(self) -> int:
        n, d = self._num_targets, self.dilation
        if n == 0:
            return 0
        reached = min(self.size, (n - 1) // d)  # steps that still land inside the sequence
        one_side = reached * n - d * reached * (reached + 1) // 2
        return n + (one_side if self.causal else 2 * one_side)

    @property
    def known_symmetric(self) -> bool:
        return not self.causal

    @property
    def known_causal(self) -> bool:
        return self.causal

    def _enumerate(self) -> Csr:
        n, d = self._num_targets, self.dilation
        token = torch.arange(n, device=self.device)
        before = (token // d).clamp(max=self.size)
        after = torch.zeros_like(token) if self.causal else ((n - 1 - token) // d).clamp(max=self.size)
        return csr_from_ranges(token - before * d, before + after + 1, n, self.num_edges, step=d)


class Hubs(Pattern):
    """The first ``count`` tokens read all tokens and are read by all. Made by :func:`hubs`."""

    _static_fields = (*Pattern._static_fields, "count")

    def __init__(self, num_tokens: int, count: int, device: Device) -> None:
        super().__init__(num_tokens, num_tokens, device=device)
        self.count = count

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return (target < self.count) | (source < self.count)

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        return self.contains(t_first, s_first), self.contains(t_last, s_last)

    @property
    def num_edges(self) -> int:
        return self.count * (2 * self._num_targets - self.count)

    @property
    def known_symmetric(self) -> bool:
        return True

    def _enumerate(self) -> Csr:
        n = self._num_targets
        token = torch.arange(n, device=self.device)
        count = torch.where(token < self.count, n, self.count)
        return csr_from_ranges(torch.zeros_like(token), count, n, self.num_edges)


class Blocks(Pattern):
    """Every target reads every source of its own member. Made by :func:`blocks`."""

    _tensor_fields = (*Pattern._tensor_fields, "_target_member", "_source_member")
    _static_fields = (*Pattern._static_fields, "_num_edges", "_equal")

    def __init__(
        self,
        target_ptr: Tensor,
        source_ptr: Tensor,
        num_targets: int,
        num_sources: int,
        num_edges: int | None = None,
    ) -> None:
        device = target_ptr.device
        super().__init__(num_targets, num_sources, device=device, target_ptr=target_ptr, source_ptr=source_ptr)
        self._num_edges = num_edges
        self._equal: bool | None = None
        self._target_member = batch_vector(target_ptr, num_targets, device)
        self._source_member: Tensor | None = None  # None: as targets
        if source_ptr is not target_ptr:
            self._source_member = batch_vector(source_ptr, num_sources, device)

    def contains(self, target: Tensor, source: Tensor) -> Tensor:
        return self._target_member[target] == self.source_batch[source]

    def tile(self, t_first: Tensor, t_last: Tensor, s_first: Tensor, s_last: Tensor) -> tuple[Tensor, Tensor]:
        t_low, t_high = self._target_member[t_first], self._target_member[t_last]
        s_low, s_high = self.source_batch[s_first], self.source_batch[s_last]
        # Members ascend, so the two ends can only be crosswise equal where all four are the same member.
        return (t_low <= s_high) & (s_low <= t_high), (t_low == s_high) & (s_low == t_high)

    @property
    def target_batch(self) -> Tensor:
        return self._target_member

    @property
    def source_batch(self) -> Tensor:
        return self._target_member if self._source_member is None else self._source_member

    @property
    def num_edges(self) -> int:
        if self._num_edges is None:
            targets, sources = self._ptrs
            self._num_edges = int((targets.diff().long() * sources.diff()).sum())
        return self._num_edges

    @property
    def sizes_known(self) -> bool:
        """Whether :attr:`equal_members` is known already, without waiting for the device."""
        return self._equal is not None or self._size_says is not None

    @property
    def equal_members(self) -> bool:
        """Whether all members are of one size; looked up once."""
        if self._equal is None:
            self._equal = self._size_says
        if self._equal is None:
            targets, sources = (ptr.diff() for ptr in self._ptrs)
            self._equal = self.num_members > 0 and bool((targets == targets[0]).all() & (sources == sources[0]).all())
        return self._equal

    @property
    def _size_says(self) -> bool | None:
        """What the number of edges says about members of one size, where it is known: by Cauchy and Schwarz,
        ``(sum n)^2 <= B sum n^2``, and equal only if all n are."""
        if self._num_edges is None or self._source_member is not None:
            return None
        return self.num_members > 0 and self.num_members * self._num_edges == self._num_targets**2

    @property
    def known_symmetric(self) -> bool:
        return self._source_member is None

    def transposed(self) -> Pattern:
        if self.known_symmetric:
            return self
        targets, sources = self._ptrs
        return Blocks(sources, targets, self._num_sources, self._num_targets, self._num_edges)

    def _parameters(self) -> dict[str, object]:
        return {}  # sizes and number of members say it all

    def _enumerate(self) -> Csr:
        _, sources = self._ptrs
        start = sources[:-1].long()[self._target_member]
        count = sources.diff().long()[self._target_member]
        return csr_from_ranges(start, count, self._num_sources, self.num_edges)

    @property
    def _ptrs(self) -> tuple[Tensor, Tensor]:
        targets, sources = self.target_ptr, self.source_ptr
        assert targets is not None and sources is not None
        return targets, sources
