"""The compiled loops: each takes a range of rows and writes those rows only, so threads never meet.

All of them stand in this file because Numba's cache on disk notices changes to the file of a function, not to those of
the functions that it calls. Source and edge numbers are made unsigned, because Numba tests signed ones for negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

__all__ = ["column_pass", "forward", "row_pass"]

_BLOCK = 64  # edges whose scores are kept at a time
# Rows are asked for this many edges before they are needed. Measured with 600k edges between 40k rows of 512 bytes:
# forward and the pass over sources 2.2 times faster, the pass over targets 1.8 times; 8 gave the same.
_AHEAD = 4

# Sums may be reordered, which is what lets them use vector units; infinities and NaN keep their meaning.
_FAST = {"reassoc", "contract", "nsz"}


def _compiled(*, fast: bool = True) -> Callable[[Callable[..., Any]], Any]:
    options = {"nogil": True, "error_model": "numpy", "fastmath": _FAST if fast else False}

    def wrap(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to write: neither NUMBA_CACHE_DIR, nor beside this file, nor in the home
            return njit(**options)(function)

    return wrap


@intrinsic
def _prefetch(typing: Any, rows: Any, i: Any) -> Any:
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


_HIGH, _LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # log 2 in two parts
_LOG2E, _ROUND = np.float32(1.44269504), np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
_SMALLEST = np.float32(-87.0)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


def _exp(x: Any) -> Any:
    raise NotImplementedError("compiled only")


@overload(_exp, jit_options={"fastmath": False})
def _exp_overload(x: Any) -> Callable[[Any], Any]:
    """``exp`` without a branch or a call in float32, so that loops over it are vectorised (Cephes' ``expf``: 1 ulp)."""

    def single(x: Any) -> Any:
        y = _SMALLEST if x < _SMALLEST else x
        shifted = y * _LOG2E + _ROUND
        n = shifted - _ROUND
        y = y - n * _HIGH
        y = y - n * _LOW
        p = ((((_P0 * y + _P1) * y + _P2) * y + _P3) * y + _P4) * y + _P5
        power = np.int32((np.int64(np.float32(shifted).view(np.int32)) + 127) << 23).view(np.float32)
        return _ZERO if x < _SMALLEST else (p * y * y + y + _ONE) * power

    def double(x: Any) -> Any:
        return math.exp(x)

    return single if x == types.float32 else double


@_compiled()
def _clip(x: Any, bound: Any) -> Any:
    """NaN stays."""
    return bound if x > bound else (-bound if x < -bound else x)


@_compiled()
def _edge(edge_id: Any, position: int) -> Any:
    """Where edge tensors hold the edge at a position of the view."""
    return np.uintp(edge_id[position]) if edge_id.size else np.uintp(position)


@_compiled()
def _mix(x: int) -> int:
    """``_random._mix`` on one number."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


@_compiled()
def _drop(n: int, start: int, edge_id: Any, low: int, high: int, threshold: int, factor: Any) -> None:
    """``_random.dropout_scale`` for ``n`` edges: multiply 0 or nothing into ``factor [H, n]``."""
    for j in range(n):
        edge = np.int64(_edge(edge_id, start + j))
        counter = _mix((edge & 0xFFFFFFFF) ^ low)
        counter = _mix(counter ^ (edge >> 32) ^ high)
        for h in range(factor.shape[0]):
            if _mix((counter + (h * 0x9E3779B9 & 0xFFFFFFFF)) & 0xFFFFFFFF) < threshold:
                factor[h, j] = 0


@_compiled()
def _scores(
    n: int,
    start: int,
    row: int,
    index: Any,
    edge_id: Any,
    q: Any,
    k: Any,
    bias: Any,
    gate: Any,
    scale: float,
    score: Any,
) -> None:
    """Scores ``[H, n]`` of the edges from ``start`` on, before the clamp."""
    bias_step = 1 if bias.shape[1] > 1 else 0
    for j in range(n):
        if start + j + _AHEAD < index.shape[0]:
            _prefetch(k, index[start + j + _AHEAD])
            if gate.size:
                _prefetch(gate, _edge(edge_id, start + j + _AHEAD))
        s = np.uintp(index[start + j])
        edge = _edge(edge_id, start + j)
        for h in range(q.shape[1]):
            total = q.dtype.type(0)
            if gate.size:
                for d in range(q.shape[2]):
                    total += q[row, h, d] * k[s, h, d] * gate[edge, h, d]
            else:
                for d in range(q.shape[2]):
                    total += q[row, h, d] * k[s, h, d]
            total *= scale
            if bias.size:
                total += bias[edge, h * bias_step]
            score[h, j] = total


@_compiled()
def forward(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    q: Any, k: Any, v: Any, bias: Any, gate: Any, scale: float, bound: float, seed: Any, threshold: int, keep: float,
    out: Any, lse: Any,
) -> None:  # fmt: skip
    """Output and log-sum-exp of the runs ``first:last`` that are not longer than ``longest``.

    Args:
        rows: Whose run each one is; empty: run i is that of row i.
        begin: First edge of each run.
        end: The edge after the last of each run.
        bias: ``[E, H]``, ``[E, 1]`` or empty; ``edge_id`` and ``gate`` may be empty, too.
        bound: The clamp, or infinity.
        seed: The two numbers of the dropout seed, each below 2^32.
        threshold: A weight is dropped if its random bits are below.
        keep: ``1 / (1 - p)``.
        out: ``[runs, H, D_v]``, written.
        lse: ``[runs, H]``, written.
    """
    heads, width = v.shape[1], v.shape[2]
    zero = q.dtype.type(0)
    infinity = q.dtype.type(np.inf)
    score = np.empty((heads, _BLOCK), q.dtype)
    top = np.empty(heads, q.dtype)
    total = np.empty(heads, q.dtype)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        row = np.uintp(rows[i]) if rows.size else np.uintp(i)
        top[:] = -infinity
        total[:] = zero
        out[i] = zero
        for start in range(begin[i], end[i], _BLOCK):
            n = min(end[i] - start, _BLOCK)
            _scores(n, start, row, index, edge_id, q, k, bias, gate, scale, score)
            for h in range(heads):
                if bound < infinity:
                    for j in range(n):
                        score[h, j] = _clip(score[h, j], bound)
                peak = top[h]
                for j in range(n):
                    if score[h, j] > peak:
                        peak = score[h, j]
                # Any finite number does where all scores are -inf: their weights are 0.
                shift = peak if peak > -infinity else zero
                shrink = _exp(top[h] - shift)
                for j in range(n):
                    score[h, j] = _exp(score[h, j] - shift)
                mass = zero
                for j in range(n):
                    mass += score[h, j]
                top[h] = peak
                total[h] = total[h] * shrink + mass
                if start > begin[i]:
                    for d in range(width):
                        out[i, h, d] *= shrink
            if threshold:
                _drop(n, start, edge_id, seed[0], seed[1], threshold, score)
            for j in range(n):
                if start + j + _AHEAD < index.shape[0]:
                    _prefetch(v, index[start + j + _AHEAD])
                s = np.uintp(index[start + j])
                for h in range(heads):
                    weight = score[h, j]
                    for d in range(width):
                        out[i, h, d] += weight * v[s, h, d]
        for h in range(heads):
            if total[h] == zero:
                lse[i, h] = -infinity
            else:
                lse[i, h] = math.log(total[h]) + (top[h] if top[h] > -infinity else zero)
                norm = keep / total[h]
                for d in range(width):
                    out[i, h, d] *= norm


@_compiled()
def row_pass(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    q: Any, k: Any, v: Any, bias: Any, gate: Any, scale: float, bound: float, seed: Any, threshold: int, keep: float,
    out: Any, lse: Any, grad_out: Any, grad_lse: Any, weight: Any, slope: Any, grad_gate: Any, grad_q: Any,
) -> None:  # fmt: skip
    """Gradients of ``q`` (by run), of the gate, of the scores (``slope [E, H]``), and the weights ``[E, H]`` again.

    The arguments are those of :func:`forward` and its results.
    """
    heads, width, v_width = q.shape[1], q.shape[2], v.shape[2]
    zero = q.dtype.type(0)
    infinity = q.dtype.type(np.inf)
    score = np.empty((heads, _BLOCK), q.dtype)
    gradient = np.empty((heads, _BLOCK), q.dtype)
    factor = np.empty((heads, _BLOCK), q.dtype)
    factor[:] = keep
    delta = np.empty(heads, q.dtype)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        row = np.uintp(rows[i]) if rows.size else np.uintp(i)
        grad_q[i] = zero
        for h in range(heads):
            total = zero
            for d in range(v_width):
                total += out[row, h, d] * grad_out[row, h, d]
            delta[h] = total - grad_lse[row, h]
        for start in range(begin[i], end[i], _BLOCK):
            n = min(end[i] - start, _BLOCK)
            _scores(n, start, row, index, edge_id, q, k, bias, gate, scale, score)
            for j in range(n):
                if start + j + _AHEAD < index.shape[0]:
                    _prefetch(v, index[start + j + _AHEAD])
                s = np.uintp(index[start + j])
                for h in range(heads):
                    total = zero
                    for d in range(v_width):
                        total += grad_out[row, h, d] * v[s, h, d]
                    gradient[h, j] = total
            if threshold:
                factor[:] = keep
                _drop(n, start, edge_id, seed[0], seed[1], threshold, factor)
            for h in range(heads):
                shift = lse[row, h] if lse[row, h] > -infinity else zero
                for j in range(n):
                    raw = score[h, j]
                    p = _exp(_clip(raw, bound) - shift)
                    ds = p * (factor[h, j] * gradient[h, j] - delta[h])
                    gradient[h, j] = ds if abs(raw) <= bound else zero
                    score[h, j] = p * factor[h, j]
            for j in range(n):
                s = np.uintp(index[start + j])
                if start + j + _AHEAD < index.shape[0]:
                    ahead = _edge(edge_id, start + j + _AHEAD)
                    _prefetch(weight, ahead)
                    _prefetch(slope, ahead)
                    if gate.size:
                        _prefetch(grad_gate, ahead)
                edge = _edge(edge_id, start + j)
                for h in range(heads):
                    weight[edge, h] = score[h, j]
                    slope[edge, h] = gradient[h, j]
                    ds = gradient[h, j] * scale
                    if gate.size:
                        for d in range(width):
                            grad_q[i, h, d] += ds * k[s, h, d] * gate[edge, h, d]
                        for d in range(width):
                            grad_gate[edge, h, d] = ds * q[row, h, d] * k[s, h, d]
                    else:
                        for d in range(width):
                            grad_q[i, h, d] += ds * k[s, h, d]


@_compiled()
def column_pass(
    first: int, last: int, longest: int, rows: Any, begin: Any, end: Any, index: Any, edge_id: Any,
    q: Any, gate: Any, scale: float, grad_out: Any, weight: Any, slope: Any, grad_k: Any, grad_v: Any,
) -> None:  # fmt: skip
    """Gradients of ``k`` and ``v`` from the weights and the gradients of the scores that :func:`row_pass` left."""
    heads, width, v_width = q.shape[1], q.shape[2], grad_out.shape[2]
    zero = q.dtype.type(0)
    for i in range(first, last):
        if end[i] - begin[i] > longest:
            continue
        grad_k[i] = zero
        grad_v[i] = zero
        for e in range(begin[i], end[i]):
            if e + _AHEAD < index.shape[0]:
                _prefetch(q, index[e + _AHEAD])
                _prefetch(grad_out, index[e + _AHEAD])
                ahead = _edge(edge_id, e + _AHEAD)
                _prefetch(weight, ahead)
                _prefetch(slope, ahead)
                if gate.size:
                    _prefetch(gate, ahead)
            t = np.uintp(index[e])
            edge = _edge(edge_id, e)
            for h in range(heads):
                p = weight[edge, h]
                for d in range(v_width):
                    grad_v[i, h, d] += p * grad_out[t, h, d]
                ds = slope[edge, h] * scale
                if gate.size:
                    for d in range(width):
                        grad_k[i, h, d] += ds * q[t, h, d] * gate[edge, h, d]
                else:
                    for d in range(width):
                        grad_k[i, h, d] += ds * q[t, h, d]
