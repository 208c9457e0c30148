"""Arrays and named tuples that compiled functions lend to one another.

Numba counts references to every array of a named tuple whenever a function takes it, and copies all that it knows of each array
into the call: with dozens of arrays that is slower than what the function does.  What is lent has an owner that keeps it for the
time of the call, so that nothing need be counted, and its address is enough.  What is taken out of a borrowed tuple is lent too;
what is returned is owned again.

Loops that write to arrays take those of a borrowed tuple out of it first: else they are looked up at every turn.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.imputils import impl_ret_borrowed, lower_builtin, lower_cast, lower_getattr_generic
from numba.core.typeconv import Conversion
from numba.extending import NativeValue, intrinsic, register_model, unbox


class Lent(types.Array):
    """Type of an array that somebody else keeps: numba's, but for what it counts.  What is made of it, a slice too, is counted."""

    def __init__(self, kind: types.Array) -> None:
        name = f"Lent({kind.name})"
        super().__init__(kind.dtype, kind.ndim, kind.layout, not kind.mutable, name, kind.aligned)

    @property
    def kept(self) -> types.Array:
        """The same, kept."""
        return self.copy()


@register_model(Lent)
class _LentModel(models.ArrayModel):
    """The struct that every array is, in which nothing is counted."""

    def has_nrt_meminfo(self) -> bool:
        return False

    def traverse(self, builder: ir.IRBuilder) -> list:
        return []

    def traverse_models(self) -> list:
        return [self]


@lower_cast(types.Array, Lent)
@lower_cast(Lent, types.Array)
def _same_array(
    context: Any, builder: ir.IRBuilder, source: types.Type, target: types.Type, value: ir.Value
) -> ir.Value:
    return value  # whoever keeps it counts it


class Borrowed(types.NamedTuple):
    """Type of a named tuple that somebody else keeps."""

    def __init__(self, kept: types.NamedTuple) -> None:
        super().__init__(tuple(map(borrowed, kept.types)), kept.instance_class)
        self.kept = kept
        self.name = f"Borrowed({kept.name})"

    @property
    def key(self) -> tuple:
        return self.instance_class, self.kept

    def unify(self, typing_context: Any, other: types.Type) -> types.Type | None:
        """A variable that is lent here and owned there owns it."""
        return None if _same(self, other) is None else self.kept

    def can_convert_from(self, typing_context: Any, other: types.Type) -> Conversion | None:
        return _same(self, other)

    def can_convert_to(self, typing_context: Any, other: types.Type) -> Conversion | None:
        return _same(self, other)


def _same(one: types.Type, other: types.Type) -> Conversion | None:
    same = isinstance(other, types.NamedTuple) and other.instance_class is one.instance_class
    return Conversion.safe if same and len(other) == len(one) else None


def borrowed(kind: types.Type) -> types.Type:
    """The type, if it is an array or a named tuple, as a function takes it that borrows it."""
    if type(kind) is types.Array:
        return Lent(kind)
    if type(kind) is types.NamedTuple:
        return Borrowed(kind)
    return kind


def on_stack(builder: ir.IRBuilder, kind: ir.Type) -> ir.Value:
    """Room for a value until the function returns, not set: numba's own would be filled with zeros."""
    with builder.goto_entry_block():
        return builder.alloca(kind)


@register_model(Borrowed)
class _BorrowedModel(models.PrimitiveModel):
    """The address of a struct, in which nothing is counted."""

    def __init__(self, dmm: Any, fe_type: Borrowed) -> None:
        super().__init__(dmm, fe_type, dmm.lookup(fe_type.kept).get_value_type().as_pointer())


def _stored(builder: ir.IRBuilder, kind: types.Type, value: ir.Value, place: ir.Value) -> None:
    """Write a value to a place, as who owns it has it: parts that are lent themselves are copied."""
    if isinstance(kind, Borrowed):
        cgutils.raw_memcpy(builder, place, value, cgutils.sizeof(builder, place.type), 1)
    elif isinstance(kind, types.NamedTuple):
        for index, member in enumerate(kind):
            _stored(
                builder, member, builder.extract_value(value, index), cgutils.gep_inbounds(builder, place, 0, index)
            )
    else:
        builder.store(value, place)


def _loaded(context: Any, builder: ir.IRBuilder, kind: types.Type, place: ir.Value) -> ir.Value:
    """The value at a place, part by part, so that those which are not used cost nothing."""
    if not isinstance(kind, types.NamedTuple):
        return builder.load(place)
    parts = [
        _loaded(context, builder, member, cgutils.gep_inbounds(builder, place, 0, index))
        for index, member in enumerate(kind)
    ]
    return context.make_tuple(builder, kind, parts)


@lower_cast(types.NamedTuple, Borrowed)
def _lend(context: Any, builder: ir.IRBuilder, source: types.Type, target: types.Type, value: ir.Value) -> ir.Value:
    place = on_stack(builder, context.get_value_type(target.kept))
    _stored(builder, source, value, place)
    return place


@lower_cast(Borrowed, Borrowed)
def _lend_on(context: Any, builder: ir.IRBuilder, source: types.Type, target: types.Type, value: ir.Value) -> ir.Value:
    return value


@lower_cast(Borrowed, types.NamedTuple)
def _own(context: Any, builder: ir.IRBuilder, source: types.Type, target: types.Type, value: ir.Value) -> ir.Value:
    return _loaded(context, builder, target, value)  # whoever keeps it counts it


def _member(context: Any, builder: ir.IRBuilder, record: Borrowed, value: ir.Value, index: int) -> ir.Value:
    place = cgutils.gep_inbounds(builder, value, 0, index)
    if isinstance(record[index], Borrowed):
        return place
    return impl_ret_borrowed(context, builder, record[index], builder.load(place))  # lists are counted


@lower_getattr_generic(Borrowed)
def _attribute(context: Any, builder: ir.IRBuilder, record: Borrowed, value: ir.Value, name: str) -> ir.Value:
    return _member(context, builder, record, value, record.fields.index(name))


@lower_builtin("static_getitem", Borrowed, types.IntegerLiteral)
def _item(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    record, index = signature.args
    return _member(context, builder, record, arguments[0], index.literal_value % len(record))


@unbox(Borrowed)
def _unbox(record: Borrowed, found: ir.Value, context: Any) -> NativeValue:
    native = context.unbox(record.kept, found)
    place = cgutils.alloca_once_value(context.builder, native.value)
    return NativeValue(place, is_error=native.is_error, cleanup=native.cleanup)


@intrinsic
def owned(typing_context: Any, record: types.Type) -> Any:
    """A named tuple, or an array, that may be lent, to keep as a part of another one."""
    if not isinstance(record, (types.NamedTuple, types.Array)):
        return None
    kept = getattr(record, "kept", record)

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        (value,) = arguments
        if isinstance(record, Borrowed):
            value = _loaded(context, builder, signature.return_type, value)
        if context.enable_nrt:
            context.nrt.incref(builder, signature.return_type, value)
        return value

    return kept(record), build
