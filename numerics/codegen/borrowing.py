"""Named tuples that compiled functions lend to one another.

Numba counts references to every array of a named tuple whenever a function takes it, and copies all that it knows of each array
into the call: with dozens of arrays that is slower than what the function does.  What is lent has an owner that keeps it for the
time of the call, so that nothing need be counted, and its address is enough.  What is taken out of a borrowed tuple, or returned,
is owned again.

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


class Borrowed(types.NamedTuple):
    """Type of a named tuple that somebody else keeps."""

    def __init__(self, members: tuple[types.Type, ...], cls: type) -> None:
        super().__init__(members, cls)
        self.name = f"Borrowed{self.name}"

    def unify(self, typing_context: Any, other: types.Type) -> types.Type | None:
        """A variable that is lent here and owned there owns it."""
        return None if _same(self, other) is None else _owned_type(self)

    def can_convert_from(self, typing_context: Any, other: types.Type) -> Conversion | None:
        return _same(self, other)

    def can_convert_to(self, typing_context: Any, other: types.Type) -> Conversion | None:
        return _same(self, other)


def _same(one: types.Type, other: types.Type) -> Conversion | None:
    same = isinstance(other, types.NamedTuple) and other.instance_class is one.instance_class
    return Conversion.safe if same and len(other) == len(one) else None


def borrowed(kind: types.Type) -> types.Type:
    """The type, if it is a named tuple with arrays, as a function takes it that borrows it."""
    if type(kind) is types.NamedTuple:
        return Borrowed(tuple(borrowed(member) for member in kind.types), kind.instance_class)
    return kind


@register_model(Borrowed)
class _BorrowedModel(models.PrimitiveModel):
    """The address of a struct, in which nothing is counted."""

    def __init__(self, dmm: Any, fe_type: Borrowed) -> None:
        super().__init__(dmm, fe_type, dmm.lookup(_owned_type(fe_type)).get_value_type().as_pointer())


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
    return context.make_tuple(builder, _owned_type(kind), parts)


@lower_cast(types.NamedTuple, Borrowed)
def _lend(context: Any, builder: ir.IRBuilder, source: types.Type, target: types.Type, value: ir.Value) -> ir.Value:
    if isinstance(source, Borrowed):
        return value
    place = cgutils.alloca_once(builder, context.get_value_type(_owned_type(target)))
    _stored(builder, source, value, place)
    return place


@lower_cast(Borrowed, types.NamedTuple)
def _own(context: Any, builder: ir.IRBuilder, source: types.Type, target: types.Type, value: ir.Value) -> ir.Value:
    if isinstance(target, Borrowed):
        return value
    return _loaded(context, builder, target, value)  # whoever keeps it counts it


def _member(context: Any, builder: ir.IRBuilder, record: Borrowed, value: ir.Value, index: int) -> ir.Value:
    place = cgutils.gep_inbounds(builder, value, 0, index)
    if isinstance(record[index], Borrowed):
        return place
    return impl_ret_borrowed(context, builder, record[index], builder.load(place))


@lower_getattr_generic(Borrowed)
def _attribute(context: Any, builder: ir.IRBuilder, record: Borrowed, value: ir.Value, name: str) -> ir.Value:
    return _member(context, builder, record, value, record.fields.index(name))


@lower_builtin("static_getitem", Borrowed, types.IntegerLiteral)
def _item(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    record, index = signature.args
    return _member(context, builder, record, arguments[0], index.literal_value % len(record))


@unbox(Borrowed)
def _unbox(record: Borrowed, found: ir.Value, context: Any) -> NativeValue:
    native = context.unbox(_owned_type(record), found)
    place = cgutils.alloca_once_value(context.builder, native.value)
    return NativeValue(place, is_error=native.is_error, cleanup=native.cleanup)


@intrinsic
def owned(typing_context: Any, record: types.Type) -> Any:
    """A borrowed named tuple to keep, as a part of another one."""
    if not isinstance(record, Borrowed):
        return None

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        value = _loaded(context, builder, signature.return_type, arguments[0])
        context.nrt.incref(builder, signature.return_type, value)
        return value

    return _owned_type(record)(record), build


def _owned_type(kind: types.Type) -> types.Type:
    """The same, kept."""
    if isinstance(kind, Borrowed):
        return types.NamedTuple(tuple(map(_owned_type, kind.types)), kind.instance_class)
    return kind
