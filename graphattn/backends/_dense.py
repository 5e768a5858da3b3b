"""PyTorch's dense attention by the first of its kernels, in an order of ours, that takes the tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["dense_attention"]

# The order can be set without sdpa_kernel, which looks at every kernel by name, twice. Host time of attention over 16
# tokens: 6 us alone, 9 us so, 26 us in sdpa_kernel (torch 2.13).
_QUICK = hasattr(torch._C, "_get_sdp_priority_order") and hasattr(torch._C, "_set_sdp_priority_order")


def dense_attention(order: list[SDPBackend], q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """``scaled_dot_product_attention`` of ``[B, H, N, D]`` on CUDA.

    Args:
        order: The kernels, in turn; all four of them.
        q: Queries.
        k: Keys.
        v: Values.
        **options: Of PyTorch's function.
    """
    if not _QUICK or torch.compiler.is_compiling() or not _all_enabled():
        with sdpa_kernel(order, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, **options)
    before = torch._C._get_sdp_priority_order()
    first = [int(kernel) for kernel in order]  # type: ignore[call-overload]
    torch._C._set_sdp_priority_order(first + [kernel for kernel in before if kernel not in first])
    try:
        return F.scaled_dot_product_attention(q, k, v, **options)
    finally:
        torch._C._set_sdp_priority_order(before)


def _all_enabled() -> bool:
    """Whether the caller has switched no kernel off, so that the order is all there is to set."""
    enabled = torch.backends.cuda
    return (
        enabled.flash_sdp_enabled()
        and enabled.mem_efficient_sdp_enabled()
        and enabled.math_sdp_enabled()
        and enabled.cudnn_sdp_enabled()
    )
