"""What every Numba implementation is made of: compilation with a cache, threads, rows with hubs cut, a few functions.

Plain threads instead of Numba's parallel loops: its OpenMP layer does not survive a fork (data loader workers) and its
own layer ends the process when two threads call at once. The compiled loops release the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

from graphattn_kernels.structure import View

__all__ = ["Array", "Parts", "compiled", "empty", "exp", "inlined", "prefetch", "run", "run_rows", "share"]

# Edges. Longer rows (hubs) are cut, always at the same places: one row does not keep all threads but one waiting, and
# a sum of sums rounds less than one long sum.
_LONGEST = 1024
_SERIAL = 1 << 19  # edges times channels below which waking a thread costs more than it gives
_PIECES = 8  # for each thread: whoever is done first takes the next

Array = np.ndarray[Any, Any]


# --- compilation ----------------------------------------------------------------------------------------------

# Sums may be reordered, which is what lets them use vector units; infinities and NaN keep their meaning.
_FAST = {"reassoc", "contract", "nsz"}


_SHARED = sorted(Path(__file__).parent.glob("_*.py"))  # files whose functions may be part of any compiled one
_OPTIONS = {"nogil": True, "error_model": "numpy"}


def inlined(function: Callable[..., Any]) -> Any:
    """Make a function that compiled ones may call; its code becomes part of theirs.

    It must neither make nor return arrays: it does not count references, which it would do, one locked instruction
    each, for every array that it is handed in a tuple: more time than a row of a few edges takes.
    """
    return njit(forceinline=True, fastmath=_FAST, _nrt=False, **_OPTIONS)(function)


def compiled(*, fast: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function on its first call for each kind of arguments, and keep the result on disk where possible.

    What it calls should stand in its own folder or in a shared file (``_*.py``): changes there are noticed.

    Args:
        fast: Allow sums in any order.
    """
    options = {**_OPTIONS, "fastmath": _FAST if fast else False}

    def wrap(function: Callable[..., Any]) -> Any:
        try:
            dispatcher = njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to write: neither NUMBA_CACHE_DIR, nor beside the file, nor in the home
            return njit(**options)(function)
        # By itself, Numba compiles again when the file of the function has changed.
        file = getattr(dispatcher._cache, "_cache_file", None)
        if file is not None:
            folder = Path(function.__code__.co_filename).parent
            stats = [path.stat() for path in (*_SHARED, *sorted(folder.glob("*.py")))]
            file._source_stamp = (file._source_stamp, *((x.st_mtime_ns, x.st_size) for x in stats))
        return dispatcher

    return wrap


@intrinsic
def prefetch(typing: Any, rows: Any, i: Any) -> Any:
    """Ask for every cache line of ``rows[i]``, an array in C order; the program goes on without waiting."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        row_bytes = cgutils.unpack_tuple(builder, array.strides)[0]
        byte_pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        start = builder.gep(builder.bitcast(array.data, byte_pointer), [builder.mul(args[1], row_bytes)])
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, int32, int32, int32])
        prefetch = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        zero, line = context.get_constant(types.intp, 0), context.get_constant(types.intp, 64)
        with cgutils.for_range_slice(builder, zero, row_bytes, line) as (offset, _):
            for_reading, all_caches, data = int32(0), int32(3), int32(1)
            builder.call(prefetch, [builder.gep(start, [offset]), for_reading, all_caches, data])
        return context.get_dummy_value()

    return types.void(rows, types.intp), generate


# Cephes' expf: exp(x) = 2^n exp(y), y = x - n log 2 with log 2 in two parts, and a polynomial for exp(y).
LOG2E, LOG2_HIGH, LOG2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
SMALLEST = np.float32(-87.0)
_COEFFICIENTS = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
EXP = tuple(map(np.float32, _COEFFICIENTS))
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


def exp(x: Any) -> Any:
    """``exp(x)`` for ``x`` that is not large, to be called from compiled code."""
    raise NotImplementedError("compiled only")


@overload(exp, jit_options={"fastmath": False})
def _exp_overload(x: Any) -> Callable[[Any], Any]:
    """``exp`` without a branch or a call in float32, so that loops over it are vectorised (Cephes' ``expf``: 1 ulp)."""

    def single(x: Any) -> Any:
        y = SMALLEST if x < SMALLEST else x
        shifted = y * LOG2E + ROUND
        n = shifted - ROUND
        y = y - n * LOG2_HIGH
        y = y - n * LOG2_LOW
        p = ((((EXP[0] * y + EXP[1]) * y + EXP[2]) * y + EXP[3]) * y + EXP[4]) * y + EXP[5]
        power = np.int32((np.int64(np.float32(shifted).view(np.int32)) + 127) << 23).view(np.float32)
        return _ZERO if x < SMALLEST else (p * y * y + y + _ONE) * power

    def double(x: Any) -> Any:
        return math.exp(x)

    return single if x == types.float32 else double


# --- memory ---------------------------------------------------------------------------------------------------

_LARGE = 1 << 22  # bytes
_madvise = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_HUGEPAGE") else None


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``torch.empty``, in large pages where the system has them for the asking.

    The first write to each page of 4 KiB goes through the system. With 2.5M edges between 169k rows of 512 bytes,
    forward and backward of attention spent a fifth of their time there, and a thirtieth with large pages.
    """
    x = torch.empty(shape, dtype=dtype, device="cpu")  # whatever the default device is
    if _madvise is not None and x.nbytes >= _LARGE:
        begin = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = x.data_ptr() + x.nbytes - begin
        _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), ctypes.c_int(mmap.MADV_HUGEPAGE))  # may fail
    return x


# --- threads --------------------------------------------------------------------------------------------------

_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not follow into the child


def share(function: Callable[[int, int], None], cuts: list[int], threads: int) -> None:
    """Call ``function`` on the ranges between neighbouring ``cuts``, on this thread and ``threads - 1`` helpers."""
    global _pool
    ranges = deque(zip(cuts[:-1], cuts[1:], strict=True))

    def work() -> None:
        while True:
            try:
                first, last = ranges.popleft()
            except IndexError:
                return
            function(first, last)

    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "graphattn")
    helpers = [_pool.submit(work) for _ in range(min(threads, len(ranges)) - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun finds nothing left to do
            helper.result()


# --- rows -----------------------------------------------------------------------------------------------------


def run(kernel: Any, view: View, width: int, inputs: tuple[Any, ...], results: tuple[Array, ...]) -> Parts | None:
    """Fill ``results``, one row for each owner, save those of hubs: their parts are returned, to be put together.

    Args:
        kernel: Compiled, called as ``kernel(first, last, longest, rows, begin, end, index, edge_id, *inputs,
            *results)`` on ranges of runs, by several threads at once: run i of ``first:last`` has the edges
            ``begin[i]:end[i]`` of owner ``rows[i]`` (of owner i where ``rows`` is empty), and fills row i of the
            results; runs of more than ``longest`` edges are left out. ``edge_id`` may be empty.
        view: The edges.
        width: Numbers read for each edge, which says whether threads are worth waking.
        inputs: Handed on.
        results: Contiguous ``[N, ...]``.
    """
    ptr, index = view.ptr.numpy(), view.index.numpy()
    edge_id = np.empty(0, index.dtype) if view.edge_id is None else view.edge_id.numpy()
    whole = np.empty(0, ptr.dtype)
    _run_ranges(kernel, whole, ptr[:-1], ptr[1:], width, (index, edge_id, *inputs, *results))
    if view.num_edges <= _LONGEST:
        return None
    lengths = ptr[1:] - ptr[:-1]  # not np.diff: on a small graph it takes a tenth of the time of a pass
    if lengths.max() <= _LONGEST:
        return None
    parts = Parts(ptr, np.flatnonzero(lengths > _LONGEST), results)
    _run_ranges(kernel, parts.rows, parts.begin, parts.end, width, (index, edge_id, *inputs, *parts.results))
    return parts


def _run_ranges(kernel: Any, rows: Array, begin: Array, end: Array, width: int, arguments: tuple[Any, ...]) -> None:
    runs = begin.shape[0]
    if runs == 0:
        return
    edges = int(end[-1]) - int(begin[0])
    threads = torch.get_num_threads()
    if threads == 1 or edges * width < _SERIAL:
        kernel(0, runs, _LONGEST, rows, begin, end, *arguments)
        return
    marks = np.linspace(int(begin[0]), int(end[-1]), threads * _PIECES + 1)[1:-1]
    cuts = [0, *np.unique(np.searchsorted(begin, marks)).tolist(), runs]
    share(lambda first, last: kernel(first, last, _LONGEST, rows, begin, end, *arguments), cuts, threads)


def run_rows(kernel: Any, rows: int, width: int, *arguments: Any) -> None:
    """Call ``kernel(first, last, *arguments)`` on ranges of rows with ``width`` numbers each, by several threads."""
    threads = torch.get_num_threads()
    if threads == 1 or rows * width < _SERIAL:
        kernel(0, rows, *arguments)
        return
    cuts = np.linspace(0, rows, threads * _PIECES + 1).astype(int).tolist()
    share(lambda first, last: kernel(first, last, *arguments), cuts, threads)


class Parts:
    """Hubs cut into parts of at most ``_LONGEST`` edges, and room for what each part gives."""

    def __init__(self, ptr: Array, hubs: Array, results: tuple[Array, ...]) -> None:
        counts = -(-(ptr[hubs + 1] - ptr[hubs]) // _LONGEST)
        self.hubs = hubs
        self.starts = np.cumsum(counts) - counts
        """Where the parts of each hub begin."""
        self.hub_of_part = np.repeat(np.arange(hubs.size), counts)
        self.rows = hubs[self.hub_of_part].astype(ptr.dtype)
        place = np.arange(self.rows.size) - self.starts[self.hub_of_part]
        self.begin = (ptr[self.rows] + place * _LONGEST).astype(ptr.dtype)
        self.end = np.minimum(self.begin + _LONGEST, ptr[self.rows + 1]).astype(ptr.dtype)
        self.results = tuple(np.empty((self.rows.size, *x.shape[1:]), x.dtype) for x in results)

    def add(self, results: tuple[Array, ...]) -> None:
        """Put the sum of each hub's parts, in order, into its row of ``results``."""
        for whole, part in zip(results, self.results, strict=True):
            whole[self.hubs] = np.add.reduceat(part, self.starts, axis=0)
