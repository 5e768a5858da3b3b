"""What the Numba implementations of the sparse operations share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphattn_kernels._numba import Array, compiled, share
from graphattn_kernels.structure import View

__all__ = ["AHEAD", "array", "by_ranges", "edge_of", "edges", "empty"]

# Rows are asked for this many edges before they are needed (measured in csr_attention: twice as fast; 8 gave the same).
AHEAD = 4
_SERIAL = 1 << 19  # numbers below which waking a thread costs more than it gives
_PIECES = 8  # for each thread: whoever is done first takes the next


def array(x: Tensor, dtype: torch.dtype) -> Array:
    """A tensor as a contiguous array in the dtype of the arithmetic."""
    return x.detach().to(dtype).contiguous().numpy()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Array:
    """Room for a result; torch's, so that the tests can fill it with NaN."""
    return torch.empty(shape, dtype=dtype, device="cpu").numpy()


def edges(view: View) -> tuple[Array, Array, Array]:
    """``owner``, ``index`` and ``edge_id``, empty where there is none."""
    index = view.index.numpy()
    return view.owner.numpy(), index, np.empty(0, index.dtype) if view.edge_id is None else view.edge_id.numpy()


@compiled()
def edge_of(edge_id: Any, position: int) -> Any:
    """Where edge tensors hold the edge at a position of the view; unsigned, so that Numba does not test the sign."""
    return np.uintp(edge_id[position]) if edge_id.size else np.uintp(position)


def by_ranges(kernel: Any, count: int, width: int, arguments: tuple[Any, ...]) -> None:
    """``kernel(first, last, *arguments)`` over ranges of ``count`` equal pieces of work, of ``width`` numbers each.

    Several threads call it at once, so it must write what belongs to its range only.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count * width < _SERIAL:
        kernel(0, count, *arguments)
        return
    cuts = np.linspace(0, count, threads * _PIECES + 1).astype(np.int64)
    share(lambda first, last: kernel(first, last, *arguments), np.unique(cuts).tolist(), threads)
