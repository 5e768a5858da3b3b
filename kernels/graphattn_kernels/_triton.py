"""Launching Triton kernels without Triton's own look at every argument, and numbers in full precision."""

# mypy: disable-error-code="no-untyped-def"
# Arguments of device functions have no Python types.

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

try:
    from triton.language.extra.cuda import gdc_wait
except ImportError:  # Triton is older
    gdc_wait = None

__all__ = [
    "aligned",
    "chained",
    "dense_rows",
    "guard",
    "is_dense",
    "join",
    "launch",
    "next_power_of_2",
    "number_of",
    "padded",
    "planned",
    "split",
    "strides_of",
    "wait_for_previous",
]

_INTERPRETED = triton.knobs.runtime.interpret
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


class _Compiled(NamedTuple):
    """What a launch needs of a compiled kernel."""

    kernel: Any
    run: Callable[..., None]
    function: Any
    metadata: Any
    constants: tuple[Any, ...]
    device: int
    stream_of: Callable[[int], int]


_compiled: dict[tuple[Any, ...], _Compiled] = {}
_numbers: dict[tuple[Any, ...], int] = {}
_fresh = count()


def number_of(kind: tuple[Any, ...]) -> int:
    """A number for a kind of launches, which is looked up sooner than the kind."""
    # Not the length of the table: threads (autograd has its own) that come at once would get the same.
    return _numbers.setdefault(kind, next(_fresh))


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    args: tuple[Any, ...],
    constants: dict[str, Any],
    kind: tuple[Any, ...] | None = None,
) -> None:
    """Launch ``kernel`` on the current device.

    Triton binds and examines every argument at every launch, which takes longer than the kernel on a small graph. Here
    the kind of a launch (all that Triton compiles for) is the key of a table of compiled kernels.

    Args:
        kernel: A function of ``triton.jit``.
        grid: Programs along each axis.
        args: The arguments that are not constexpr, all of them, in order: tensors, ``None``, ints and floats.
        constants: The constexpr arguments, which stand last, all of them, in order; and ``num_warps``,
            ``num_stages`` and, to cap the registers of a thread, ``maxnreg``. CHAINED: see :func:`chained`.
        kind: Whatever decides the device, ``constants``, which arguments are ``None``, the dtypes and alignments of the
            tensors, and which ints are 1, divisible by 16 or wide; found by looking at each argument where it is not
            given.
    """
    if 0 in grid:
        return
    if _INTERPRETED:
        kernel[grid](*args, **constants)
        return
    key = (id(kernel), *constants.values(), *map(_kind, args)) if kind is None else (id(kernel), kind)
    known = _compiled.get(key)
    if known is None:
        _compiled[key] = _compile(kernel, grid, args, constants)
        return
    if getattr(triton.knobs.runtime.launch_enter_hook, "calls", None):  # somebody wants to see each launch
        known.kernel[grid](*args, *known.constants)
        return
    stream = known.stream_of(known.device)
    known.run(*grid, stream, known.function, known.metadata, None, None, None, *args, *known.constants)


def _compile(kernel: Any, grid: tuple[int, int, int], args: tuple[Any, ...], constants: dict[str, Any]) -> _Compiled:
    early = {"launch_pdl": True} if constants.get("CHAINED") else {}
    with _loading_is_allowed():
        compiled = kernel[grid](*args, **constants, **early)  # and launched
    driver = triton.runtime.driver.active
    return _Compiled(
        compiled,
        compiled.run,
        compiled.function,
        compiled.packed_metadata,
        tuple(value for name, value in constants.items() if name not in _OPTIONS),
        driver.get_current_device(),
        driver.get_current_stream,
    )


@lru_cache
def chained(device: int) -> bool:
    """Whether a kernel on this device may be put in place while the one before it on its stream still ends.

    It then starts sooner. That takes compute capability 9.0, and a kernel that begins with :func:`wait_for_previous`
    (CUDA programming guide, "programmatic dependent launch").
    """
    if _INTERPRETED or gdc_wait is None or torch.version.hip or device < 0:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def wait_for_previous(CHAINED: tl.constexpr):
    """Wait until the kernels before have ended and what they wrote can be read. The first statement of a kernel that
    has a CHAINED, which is what :func:`chained` says."""
    if CHAINED:
        gdc_wait()


@contextmanager
def _loading_is_allowed() -> Iterator[None]:
    """Loading a kernel breaks a CUDA graph that is being captured, unless the thread has said that it knows best.

    A kernel may be new there though all steps before the capture were the same: whether a graph has hubs is known only
    when the device has counted them, and there are kernels for either.
    """
    if torch.version.hip or not torch.cuda.is_current_stream_capturing():  # on ROCm, run a step before the capture
        yield
        return
    driver, mode = ctypes.CDLL(_DRIVER), ctypes.c_int(_RELAXED)
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))  # leaves the mode before in it
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def _kind(x: Any) -> Any:
    """What Triton compiles for: dtype and alignment; integers that are 1, divisible by 16, or wide."""
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % 16 == 0, x.get_device()
    if isinstance(x, int):
        return x == 1, x % 16 == 0, -(2**31) <= x < 2**31
    return type(x)


def aligned(x: Tensor) -> Tensor:
    """``x`` where 16 bytes can be loaded at once; a copy of a view that begins elsewhere."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is not below ``n > 0``; Triton's own takes microseconds."""
    return 1 << (n - 1).bit_length()


def padded(width: int) -> int:
    """Channels as tiles hold them: a tensor core takes 16 at least."""
    return max(16, next_power_of_2(width))


def is_dense(shape: tuple[int, ...], steps: tuple[int, ...]) -> bool:
    """Whether kernels take rows ``[B, N, H, D]`` with these strides: channels are dense, and the type of the stride
    holds the offsets of a block of up to 128 rows."""
    return (steps[3] == 1 or shape[3] == 1) and (shape[1] == 1 or not 2**24 <= steps[1] < 2**31)


def dense_rows(x: Tensor) -> Tensor:
    """``x [B, N, H, D]`` with its channels dense; the other strides are free, as in a packed projection."""
    return aligned(x if is_dense(x.shape, x.stride()) else x.contiguous())


@lru_cache(1024)
def strides_of(dtype: torch.dtype, *layouts: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[tuple[int, ...], int]:
    """Strides of batch, rows and heads of tensors ``[B, N, H, D]`` of these shapes and strides, and the power of 2, up
    to what 16 bytes hold, that divides them and the channels."""
    strides = [0 if n == 1 else step for shape, steps in layouts for n, step in zip(shape[:3], steps[:3], strict=True)]
    align = 16 // dtype.itemsize
    while any(n % align for n in (*strides, *(shape[3] for shape, _ in layouts))):
        align //= 2
    return tuple(strides), align


def planned(plan_of: Callable[..., Any], rows: tuple[Tensor, ...], *rest: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """The plan of a call, looked up by all that shapes decide, and its rows ``[B, N, H, D]``: as they are, or copied by
    :func:`dense_rows`.

    Args:
        plan_of: A cached function of the dtype, the device's number, the shape and strides of each of the rows, and
            ``rest``, to a plan that says whether all of them are ``dense``.
        rows: q, k and v.
        rest: What else decides.
    """
    plan = _look_up(plan_of, rows, rest)
    if not plan.dense or any(x.data_ptr() % 16 for x in rows):
        rows = tuple([dense_rows(x) for x in rows])
        plan = _look_up(plan_of, rows, rest)
    return plan, rows


def _look_up(plan_of: Callable[..., Any], rows: tuple[Tensor, ...], rest: tuple[Any, ...]) -> Any:
    layouts = tuple([(x.shape, x.stride()) for x in rows])
    return plan_of(rows[0].dtype, rows[0].get_device(), layouts, *rest)


def guard(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device: make it that of ``x``."""
    if x.is_cuda and x.get_device() != torch._C._cuda_getDevice():
        return torch.cuda.device(x.device)
    return nullcontext()


@lru_cache(256)
def split(x: float) -> tuple[float, float]:
    """Two numbers that float32 holds and whose sum is ``x`` to 48 bits: Triton passes floats as float32."""
    high = struct.unpack("f", struct.pack("f", x))[0]
    return high, x - high


@triton.jit
def join(high, low, ACC: tl.constexpr):
    """A number handed over by :func:`split`."""
    return tl.full([], high, ACC) + tl.full([], low, ACC)
