"""Named tuples that compiled functions lend to one another.

Numba counts references to every array of a named tuple whenever a function takes it: with dozens of arrays that is slower than what
the function does.  What is lent has an owner that keeps it for the time of the call, so that nothing need be counted.  A borrowed
tuple has the same representation; what is taken out of it, or returned, is owned again.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.core.imputils import lower_cast
from numba.core.typeconv import Conversion
from numba.extending import intrinsic, register_model


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
class _BorrowedModel(models.TupleModel):
    """Of a struct in which nothing is counted."""

    def traverse(self, builder: ir.IRBuilder) -> list:
        return []

    def inner_models(self) -> list:
        return []


@lower_cast(types.NamedTuple, Borrowed)
def _lend(context: Any, builder: ir.IRBuilder, source: types.Type, target: types.Type, value: ir.Value) -> ir.Value:
    return value


@lower_cast(Borrowed, types.NamedTuple)
def _own(context: Any, builder: ir.IRBuilder, source: types.Type, target: types.Type, value: ir.Value) -> ir.Value:
    return value  # whoever keeps it counts it


@intrinsic
def owned(typing_context: Any, record: types.Type) -> Any:
    """A borrowed named tuple to keep, as a part of another one."""
    if not isinstance(record, Borrowed):
        return None

    def build(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        context.nrt.incref(builder, signature.return_type, arguments[0])
        return arguments[0]

    return _owned_type(record)(record), build


def _owned_type(kind: types.Type) -> types.Type:
    if isinstance(kind, Borrowed):
        return types.NamedTuple(tuple(map(_owned_type, kind.types)), kind.instance_class)
    return kind
