"""Eight numbers at once in Numba's code, where loops over the few channels of a head are not vectorised well.

LLVM maps the eight to the registers of the machine: one of AVX, two of SSE or NEON. Arrays are flat. 16-bit integers
stand for half types, which Numba does not know: int16 for bfloat16, uint16 for float16; loading makes them float32.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

__all__ = ["LANES", "fetch", "line_of", "load", "spread", "store", "total", "totals", "where_larger"]
__all__ += ["INT32", "constant", "spread_value", "vector"]

LANES = 8
_LINE = 64  # bytes of a cache line
# A product and a sum may become one instruction, and the sign of zero is free; nothing else changes.
_FLAGS = ("contract", "nsz")
INT32 = ir.IntType(32)


class _Lanes(types.Type):  # type: ignore[misc]
    """Eight numbers of one type."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, lanes: Any) -> None:
        super().__init__(manager, lanes, vector(manager.lookup(lanes.dtype).get_value_type()))


# What intrinsics are written with.


def vector(element: Any, count: int = LANES) -> Any:
    """LLVM's type of so many elements."""
    return ir.VectorType(element, count)


def constant(vector: Any, value: Any) -> Any:
    """A vector of one value."""
    return ir.Constant(vector, [value] * vector.count)


def _shuffle(builder: Any, x: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), ir.Constant(vector(INT32, len(order)), order))


def _join(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(vector(INT32, len(order)), order))


def spread_value(builder: Any, x: Any) -> Any:
    """Eight times a value of LLVM."""
    one = builder.insert_element(ir.Constant(vector(x.type), ir.Undefined), x, INT32(0))
    return _shuffle(builder, one, [0] * LANES)


def _as_lanes(builder: Any, values: Any, kinds: Any) -> list[Any]:
    return [x if isinstance(t, _Lanes) else spread_value(builder, x) for x, t in zip(values, kinds, strict=True)]


# --- arithmetic -----------------------------------------------------------------------------------------------


class _Arithmetic(AbstractTemplate):  # type: ignore[misc]
    """Of lanes with lanes, or with a number of the same type."""

    def generic(self, args: Any, kws: Any) -> Any:
        lanes = [x for x in args if isinstance(x, _Lanes)]
        if len(args) == 2 and lanes and all(x in (lanes[0], lanes[0].dtype) for x in args):
            return signature(lanes[0], *args)
        return None


def _arithmetic(symbol: Any, method: str) -> None:
    infer_global(symbol)(_Arithmetic)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b = _as_lanes(builder, args, signature.args)
        return getattr(builder, method)(a, b, flags=_FLAGS)

    for pair in ((_Lanes, _Lanes), (_Lanes, types.Float), (types.Float, _Lanes)):
        lower_builtin(symbol, *pair)(generate)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")


@intrinsic
def spread(typing: Any, x: Any) -> Any:
    """Eight times a number."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return spread_value(builder, args[0])

    return _Lanes(x)(x), generate


@intrinsic
def where_larger(typing: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """``x`` where ``a > b``, else ``y`` (where one is NaN, too); numbers stand for eight."""
    kinds = (a, b, x, y)
    result = next(kind for kind in kinds if isinstance(kind, _Lanes))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, x, y = _as_lanes(builder, args, kinds)
        return builder.select(builder.fcmp_ordered(">", a, b), x, y)

    return result(*kinds), generate


@intrinsic
def total(typing: Any, x: Any) -> Any:
    """Sum of the eight, always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,) = args
        for width in (4, 2, 1):
            low, high = list(range(width)), list(range(width, 2 * width))
            x = builder.fadd(_shuffle(builder, x, low), _shuffle(builder, x, high))
        return builder.extract_element(x, INT32(0))

    return x.dtype(x), generate


# --- memory ---------------------------------------------------------------------------------------------------


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    element = context.get_data_type(kind.dtype)
    return builder.bitcast(builder.gep(data, [at]), vector(element).as_pointer())


def _first(builder: Any, count: Any) -> Any:
    """Which lanes are among the first ``count``."""
    count = builder.trunc(count, INT32)
    return builder.icmp_signed("<", ir.Constant(vector(INT32), list(range(LANES))), spread_value(builder, count))


def _widen(builder: Any, dtype: Any, x: Any) -> Any:
    if dtype == types.int16:
        wide = vector(INT32)
        return builder.bitcast(builder.shl(builder.zext(x, wide), constant(wide, 16)), vector(ir.FloatType()))
    if dtype == types.uint16:
        return builder.fpext(builder.bitcast(x, vector(ir.HalfType())), vector(ir.FloatType()))
    return x


def _narrow(builder: Any, dtype: Any, x: Any) -> Any:
    if dtype == types.int16:  # to the nearest, ties to even; NaN stays NaN
        wide = vector(INT32)
        bits = builder.bitcast(x, wide)
        odd = builder.and_(builder.lshr(bits, constant(wide, 16)), constant(wide, 1))
        rounded = builder.add(builder.add(bits, odd), constant(wide, 0x7FFF))
        bits = builder.select(builder.fcmp_unordered("uno", x, x), constant(wide, 0x7FC00000), rounded)
        return builder.trunc(builder.lshr(bits, constant(wide, 16)), vector(ir.IntType(16)))
    if dtype == types.uint16:
        return builder.bitcast(builder.fptrunc(x, vector(ir.HalfType())), vector(ir.IntType(16)))
    return x


@intrinsic
def load(typing: Any, array: Any, at: Any, count: Any) -> Any:
    """The elements of a flat array from ``at`` on, zeros after the first ``count`` (half types: eight are needed)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        array, at, count = args
        pointer = _pointer(context, builder, kind, array, at)
        align = kind.dtype.bitwidth // 8
        if isinstance(kind.dtype, types.Integer):
            return _widen(builder, kind.dtype, builder.load(pointer, align=align))
        vector = pointer.type.pointee
        result = cgutils.alloca_once(builder, vector)
        with builder.if_else(builder.icmp_signed(">=", count, count.type(LANES)), likely=True) as (full, part):
            with full:
                builder.store(builder.load(pointer, align=align), result)
            with part:
                mask = _first(builder, count)
                name = f"llvm.masked.load.v{LANES}f{kind.dtype.bitwidth}.p0v{LANES}f{kind.dtype.bitwidth}"
                kinds = [pointer.type, INT32, mask.type, vector]
                function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, kinds), name)
                builder.store(builder.call(function, [pointer, INT32(align), mask, constant(vector, 0.0)]), result)
        return builder.load(result)

    number = types.float32 if isinstance(array.dtype, types.Integer) else array.dtype
    return _Lanes(number)(array, types.intp, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, at: Any, x: Any, count: Any) -> Any:
    """Put the first ``count`` of the eight into a flat array from ``at`` on (half types: all eight)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        array, at, x, count = args
        pointer = _pointer(context, builder, kind, array, at)
        align = kind.dtype.bitwidth // 8
        if isinstance(kind.dtype, types.Integer):
            builder.store(_narrow(builder, kind.dtype, x), pointer, align=align)
            return context.get_dummy_value()
        with builder.if_else(builder.icmp_signed(">=", count, count.type(LANES)), likely=True) as (full, part):
            with full:
                builder.store(x, pointer, align=align)
            with part:
                mask = _first(builder, count)
                name = f"llvm.masked.store.v{LANES}f{kind.dtype.bitwidth}.p0v{LANES}f{kind.dtype.bitwidth}"
                kinds = [x.type, pointer.type, INT32, mask.type]
                function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
                builder.call(function, [x, pointer, INT32(align), mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, x, types.intp), generate


@intrinsic
def line_of(typing: Any, array: Any) -> Any:
    """Elements in a cache line, known to the compiler."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, _LINE * 8 // signature.args[0].dtype.bitwidth)

    return types.intp(array), generate


@intrinsic
def fetch(typing: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line of a flat array's element ``at``; the program goes on without waiting.

    It goes to the second level of the cache: more lines may be on their way there than to the first, which made the
    backward pass of attention a seventh faster (AMD EPYC, Zen 3).
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte_pointer = ir.IntType(8).as_pointer()
        pointer = builder.bitcast(builder.gep(data, [args[1]]), byte_pointer)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
        for_reading, second_level, data_cache = INT32(0), INT32(2), INT32(1)
        builder.call(function, [pointer, for_reading, second_level, data_cache])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def totals(typing: Any, array: Any, at: Any) -> Any:
    """Sums of eight times eight elements of a flat array from ``at`` on, always in the same order."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        array, at = args
        rows = []
        for n in range(LANES):
            pointer = _pointer(context, builder, kind, array, builder.add(at, at.type(n * LANES)))
            rows.append(builder.load(pointer, align=kind.dtype.bitwidth // 8))
        # Neighbours are added and the sums of two rows joined, three times; a register of AVX has two halves, which
        # only the last step crosses.
        for even, odd in (
            ([0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]),
            ([0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]),
            ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
        ):
            pairs = zip(rows[::2], rows[1::2], strict=True)
            rows = [builder.fadd(_join(builder, a, b, even), _join(builder, a, b, odd)) for a, b in pairs]
        return rows[0]

    return _Lanes(array.dtype)(array, types.intp), generate
