"""Functions of eight numbers at once, see ``_lanes``: exponential, logarithm, and the bits of dropout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic, overload

from graphattn_kernels._lanes import INT32, LANES, constant, spread_value, vector, where_larger
from graphattn_kernels._numba import EXP, LOG2_HIGH, LOG2_LOW, LOG2E, ROUND, SMALLEST

__all__ = ["exp", "keep", "log"]


@intrinsic
def keep(typing: Any, counter: Any, head: Any, threshold: Any, x: Any) -> Any:
    """``x`` where the random bits of heads ``head``, ``head + 1``, ... reach ``threshold``, else 0: see ``_random``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter, head, threshold, x = args
        wide = vector(INT32)
        heads = builder.add(spread_value(builder, builder.trunc(head, INT32)), ir.Constant(wide, list(range(LANES))))
        bits = builder.mul(heads, constant(wide, 0x9E3779B9))
        bits = builder.add(bits, spread_value(builder, builder.trunc(counter, INT32)))
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None)):
            bits = builder.xor(bits, builder.lshr(bits, constant(wide, shift)))
            if factor is not None:
                bits = builder.mul(bits, constant(wide, factor))
        dropped = builder.icmp_unsigned("<", bits, spread_value(builder, builder.trunc(threshold, INT32)))
        return builder.select(dropped, constant(x.type, 0.0), x)

    return x(types.int64, types.int64, types.int64, x), generate


@intrinsic
def _power_of_two(typing: Any, shifted: Any) -> Any:
    """2^n from n + ``ROUND``, whose last bits are those of n."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = vector(INT32)
        bits = builder.add(builder.bitcast(args[0], wide), constant(wide, 127))
        return builder.bitcast(builder.shl(bits, constant(wide, 23)), vector(ir.FloatType()))

    return shifted(shifted), generate


_ROOT = 0x3F3504F3  # the bits of sqrt(0.5)
_COEFFICIENTS = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_LOG = tuple(map(np.float32, _COEFFICIENTS))
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


def _exponent_bits(builder: Any, x: Any) -> Any:
    wide = vector(INT32)
    bits = builder.sub(builder.bitcast(x, wide), constant(wide, _ROOT))
    return builder.ashr(bits, constant(wide, 23))


@intrinsic
def _exponent(typing: Any, x: Any) -> Any:
    """The n for which x / 2^n is between sqrt(0.5) and sqrt(2)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sitofp(_exponent_bits(builder, args[0]), vector(ir.FloatType()))

    return x(x), generate


@intrinsic
def _mantissa(typing: Any, x: Any) -> Any:
    """x / 2^n."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = vector(INT32)
        shift = builder.shl(_exponent_bits(builder, args[0]), constant(wide, 23))
        return builder.bitcast(builder.sub(builder.bitcast(args[0], wide), shift), vector(ir.FloatType()))

    return x(x), generate


def _each(function: Callable[[float], float]) -> Any:
    """An intrinsic that calls a function for each lane."""

    @intrinsic
    def call(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            one = context.get_function(function, x.dtype(x.dtype))
            result = args[0]
            for n in range(LANES):
                y = one(builder, [builder.extract_element(args[0], INT32(n))])
                result = builder.insert_element(result, y, INT32(n))
            return result

        return x(x), generate

    return call


_each_exp, _each_log = _each(math.exp), _each(math.log)


def exp(x: Any) -> Any:
    """``exp`` of each, none of them large."""
    raise NotImplementedError("compiled only")


def log(x: Any) -> Any:
    """``log`` of each, positive and finite (NaN stays)."""
    raise NotImplementedError("compiled only")


# In float32 without a branch or a call: Cephes' expf and logf, 1 ulp each.


@overload(exp, jit_options={"fastmath": False})
def _exp(x: Any) -> Callable[[Any], Any]:
    def single(x: Any) -> Any:
        y = where_larger(SMALLEST, x, SMALLEST, x)
        shifted = y * LOG2E + ROUND
        n = shifted - ROUND
        y = y - n * LOG2_HIGH
        y = y - n * LOG2_LOW
        p = ((((y * EXP[0] + EXP[1]) * y + EXP[2]) * y + EXP[3]) * y + EXP[4]) * y + EXP[5]
        return where_larger(SMALLEST, x, _ZERO, (p * y * y + y + _ONE) * _power_of_two(shifted))

    def double(x: Any) -> Any:
        return _each_exp(x)

    return single if x.dtype == types.float32 else double


@overload(log, jit_options={"fastmath": False})
def _log(x: Any) -> Callable[[Any], Any]:
    def single(x: Any) -> Any:
        n, y = _exponent(x), _mantissa(x) - _ONE
        z = y * y
        p = ((((y * _LOG[0] + _LOG[1]) * y + _LOG[2]) * y + _LOG[3]) * y + _LOG[4]) * y + _LOG[5]
        p = ((p * y + _LOG[6]) * y + _LOG[7]) * y + _LOG[8]
        p = p * y * z + n * LOG2_LOW - z * _HALF
        return y + p + n * LOG2_HIGH + (x - x)

    def double(x: Any) -> Any:
        return _each_log(x)

    return single if x.dtype == types.float32 else double
