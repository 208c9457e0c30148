"""Room for arrays of compiled functions that costs nothing: on the stack, or part of an array that is there already.

Kernels are called so often that each array they make is felt, and so is each reference to it that is counted.  What is of a fixed
size goes to the stack; what lives together is one array, cut into parts.  Neither is counted: an array on the stack must not be
returned, and whoever keeps a part keeps the whole.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from numerics.codegen.borrowing import Lent, on_stack

PART, PART_MATRIX, PART_CUBE = (Lent(types.Array(types.float64, d, "C")) for d in (1, 2, 3))
INTEGER_PART, INTEGER_PART_MATRIX = (Lent(types.Array(types.int64, d, "C")) for d in (1, 2))
"""Types of such arrays."""

_NUMBERS = {1: PART, 2: PART_MATRIX}
_ITEM = 8  # bytes of a number, of either kind


def _array(context: Any, builder: ir.IRBuilder, kind: types.Array, data: ir.Value, shape: list[ir.Value]) -> ir.Value:
    """A C-ordered array that nobody counts."""
    made = context.make_array(kind)(context, builder)
    strides = [context.get_constant(types.intp, _ITEM)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    populate_array(made, data, shape, strides, context.get_constant(types.intp, _ITEM), None)
    return made._getvalue()


def _on_stack(shape: tuple[types.Type, ...]) -> Any:
    """What an intrinsic returns for an array of this constant shape."""
    if not all(isinstance(length, types.IntegerLiteral) for length in shape):
        return None
    lengths = [length.literal_value for length in shape]
    kind = _NUMBERS[len(shape)]

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        size = 1
        for length in lengths:
            size *= length
        place = on_stack(builder, ir.ArrayType(ir.DoubleType(), size))
        data = builder.bitcast(place, ir.DoubleType().as_pointer())
        return _array(context, builder, kind, data, [context.get_constant(types.intp, length) for length in lengths])

    return kind(*shape), build


@intrinsic(prefer_literal=True)
def stack(typing_context, size):
    """Array of ``size`` (a constant) numbers, not set, that is there until the function returns."""
    return _on_stack((size,))


@intrinsic(prefer_literal=True)
def stack_matrix(typing_context, rows, columns):
    """The same, shape (rows, columns)."""
    return _on_stack((rows, columns))


def _part_of(kind: types.Array) -> Any:
    """What builds a part of an array: from an entry on, with the lengths that follow."""

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        whole, first, *shape = arguments
        data = context.make_array(signature.args[0])(context, builder, whole).data
        place = builder.gep(data, [first])
        item = context.get_data_type(kind.dtype).as_pointer()
        return _array(context, builder, kind, builder.bitcast(place, item), shape)

    return build


@intrinsic
def part(typing_context, whole, first, size):
    """``size`` numbers of a contiguous array of numbers, from entry ``first`` on."""
    return _NUMBERS[1](whole, types.intp, types.intp), _part_of(_NUMBERS[1])


@intrinsic
def part_matrix(typing_context, whole, first, rows, columns):
    """The same, shape (rows, columns)."""
    return _NUMBERS[2](whole, types.intp, types.intp, types.intp), _part_of(_NUMBERS[2])


@intrinsic
def integer_part(typing_context, whole, first, size):
    """The same place, for as many integers."""
    return INTEGER_PART(whole, types.intp, types.intp), _part_of(INTEGER_PART)


@intrinsic
def entry(typing_context, whole, index):
    """``whole[index]``, a part of an array of more dimensions."""
    kind = Lent(types.Array(whole.dtype, whole.ndim - 1, "C"))

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        shape = cgutils.unpack_tuple(builder, array.shape)[1:]
        first = arguments[1]
        for length in shape:
            first = builder.mul(first, length)
        return _array(context, builder, kind, builder.gep(array.data, [first]), shape)

    return kind(whole, types.intp), build
