"""Functions that are set apart: compiled code holds the name of what it calls, and jumps there.

An early function is there when its callers are compiled or read.  Of a late one callers hold a cell, the place of its address,
which is empty at first: who finds it so calls back to Python, where the function is compiled or read, and the cell filled, in
whatever thread that happens.  So no start waits for what few problems need.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.funcdesc import ExternalFunctionDescriptor

FILL = "numerics_fill_cell"
"""Name of the way back to Python."""


def call_of(name: str, signature: Any, late: bool, plain: bool, noalias: bool) -> Callable:
    """What numba makes of a call; of a plain function without a look at whether it failed: that keeps counts of references."""
    declared = ExternalFunctionDescriptor(name, signature.return_type, signature.args)
    declared.noalias = noalias
    found = _in_cell if late else _linked

    def call(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        function = found(context, builder, declared)
        status, value = context.call_conv.call_function(
            builder, function, declared.restype, declared.argtypes, arguments
        )
        if not plain:
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
        return value

    call.signature, call.libs = declared.argtypes, ()
    return call


def _linked(context: Any, builder: ir.IRBuilder, declared: Any) -> ir.Value:
    """The function of this name."""
    return context.declare_function(builder.module, declared)


def _in_cell(context: Any, builder: ir.IRBuilder, declared: Any) -> ir.Value:
    """The function whose cell has this name; it is there when the value is used."""
    if not context.enable_nrt:
        raise TypeError(f"a plain function cannot call {declared.mangled_name}, which is late and may fail to compile")
    module, name = builder.module, declared.mangled_name
    kind = context.call_conv.get_function_type(declared.restype, declared.argtypes).as_pointer()
    cell = module.globals.get(name) or ir.GlobalVariable(module, ir.LiteralStructType([kind, _WORD]), name)
    address, failure = (cgutils.gep_inbounds(builder, cell, 0, member) for member in range(2))
    with cgutils.if_unlikely(builder, cgutils.is_null(builder, builder.load(address))):
        fill = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), [_BYTES]), FILL)
        builder.call(fill, [builder.bitcast(cell, _BYTES)])
        with cgutils.if_unlikely(builder, cgutils.is_null(builder, builder.load(address))):
            with cgutils.if_unlikely(builder, builder.icmp_signed("==", builder.load(failure), _WORD(_INTERRUPTED))):
                context.call_conv.return_user_exc(builder, KeyboardInterrupt)
            context.call_conv.return_user_exc(builder, RuntimeError, ("a part of the solver could not be compiled",))
    return builder.load(address)


class _Cell(ctypes.Structure):
    """Address of a function, or why there is none."""

    _fields_ = (("address", ctypes.c_void_p), ("failure", ctypes.c_int64))


_WORD, _BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
_INTERRUPTED = 1
_cells: dict[int, tuple[_Cell, Callable[[], int]]] = {}


def new_cell(make: Callable[[], int]) -> int:
    """Address of a cell for the address that ``make`` returns; it is called when that is needed."""
    cell = _Cell()
    _cells[ctypes.addressof(cell)] = cell, make
    return ctypes.addressof(cell)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _fill(address: int) -> None:
    """Fill a cell, unless it is.  Errors, which cannot leave through compiled code, are printed by ctypes, but for interrupts."""
    cell, make = _cells[address]
    with global_compiler_lock:
        cell.failure = 0
        try:
            cell.address = cell.address or make()
        except KeyboardInterrupt:
            cell.failure = _INTERRUPTED


llvmlite.binding.add_symbol(FILL, ctypes.cast(_fill, ctypes.c_void_p).value)
