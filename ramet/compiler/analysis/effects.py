"""What an op may do besides computing its results."""

from __future__ import annotations

from ramet.ir.builtins import BUILTINS
from ramet.ir.module import Function, Module
from ramet.ir.ops import (
    Call,
    Const,
    GetVar,
    HostCall,
    Inspect,
    MakeList,
    Op,
    Open,
    Pin,
    Prefetch,
    ProgramCall,
)
from ramet.ir.types import Type

# Builtins that cannot fail whatever plain values they get (limits aside).
_TOTAL = frozenset({"str", "repr", "not", "truth", "is", "is_not", "eq", "ne", "bool"})
_TOTAL_ON_SEQUENCES = frozenset({"len", "iterate", "list", "tuple", "reversed"})
_TOTAL_ON_NUMBERS = frozenset({"add", "sub", "lt", "le", "gt", "ge", "neg", "pos"})
CONTAINERS = (Type.JSON, Type.LIST, Type.DICT)


def removable(op: Op) -> bool:
    """May the op go when nobody uses its results? Not if it could fail: a program that fails must go on failing."""
    if isinstance(op, Const | MakeList | Open):
        return True
    if isinstance(op, Inspect):
        return op.what != "meta"
    if isinstance(op, Call):
        return _is_total(op)
    return False


def _is_total(op: Call) -> bool:
    kinds = [arg.type for arg in op.args]
    if op.function in _TOTAL or op.function == "undefined" or (op.function == "format" and len(kinds) == 1):
        return True
    if op.function in _TOTAL_ON_SEQUENCES:
        return len(kinds) == 1 and kinds[0] in (Type.TEXT, Type.LIST)
    if op.function in ("concat", "add") and all(kind is Type.TEXT for kind in kinds):
        return True
    return op.function in _TOTAL_ON_NUMBERS and all(kind is Type.INT for kind in kinds)


def writes(op: Op) -> bool:
    """Changes a list or dict in place, or stops the program."""
    return isinstance(op, Call) and BUILTINS[op.function].writes


def is_pure(op: Op) -> bool:
    """The same operands give the same result, wherever the op stands (as long as nothing that it reads is written)."""
    return isinstance(op, Const) or (isinstance(op, Call) and not writes(op) and op.function not in ("undefined", "bound"))


def calls_host(module: Module, function: Function, seen: frozenset[str] = frozenset()) -> bool:
    """Does the function, or one that it calls, run anything on the client?"""
    if function.name in seen:
        return False
    seen |= {function.name}
    for op in function.ops():
        if isinstance(op, HostCall) or (isinstance(op, ProgramCall) and calls_host(module, module.function(op.function), seen)):
            return True
    return False


def looks_only(op: Op) -> bool:
    """Looks at a conversation without continuing it."""
    return isinstance(op, GetVar | Inspect | Prefetch | Pin)
