"""Lets generations that do not need each other run together, without a fork in the user's code.

Python waits at every read of a variable and at every call of a program. This pass moves the wait to where the value is truly needed:
a read, the text or list built of it, a call that runs no host code become `deferred`. What the host sees, what decides a branch, and what
reads memory that is changed later keep their place.
"""

from __future__ import annotations

from dataclasses import replace

from ramet.compiler.analysis.dependence import SharedMemory
from ramet.compiler.analysis.effects import calls_host, is_pure
from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import each_function, map_ops
from ramet.ir.module import Function, Module
from ramet.ir.ops import Call, GetVar, Index, MakeDict, MakeList, Op, ProgramCall


def parallelize(module: Module, notes: Notes) -> Module:
    on_host = {function.name for function in module.functions if calls_host(module, function)}
    return each_function(module, lambda function: _defer(function, on_host, notes))


def _defer(function: Function, on_host: set[str], notes: Notes) -> Function:
    memory = SharedMemory(function)
    return map_ops(function, lambda op: _deferred(op, memory, on_host, notes))


def _deferred(op: Op, memory: SharedMemory, on_host: set[str], notes: Notes) -> Op:
    if getattr(op, "deferred", False):
        return op
    if isinstance(op, GetVar) and not memory.written(op.out):
        notes.did(op.loc, "the read does not wait; what uses it does")
        return replace(op, deferred=True)
    if isinstance(op, ProgramCall):
        return _deferred_program(op, memory, on_host, notes)
    if isinstance(op, Call) and op.function == ".append":
        return replace(op, deferred=True)  # its place in the list is kept
    if isinstance(op, Call) and is_pure(op) and not any(map(memory.written, (*op.args, op.out))):
        return replace(op, deferred=True)
    if isinstance(op, MakeList | MakeDict) and op.items and not any(map(memory.written, (*op.items, op.out))):
        return replace(op, deferred=True)
    if isinstance(op, Index) and not any(map(memory.written, (op.object, op.key, op.out))):
        return replace(op, deferred=True)
    return op


def _deferred_program(op: ProgramCall, memory: SharedMemory, on_host: set[str], notes: Notes) -> Op:
    if op.function in on_host:
        notes.did_not(op.loc, f"{op.function} calls the host, whose calls keep their order")
        return op
    if any(map(memory.written, (*op.args, op.value))):
        notes.did_not(op.loc, f"{op.function} shares a list or dict that is changed here")
        return op
    notes.did(op.loc, f"{op.function} runs beside what follows")
    return replace(op, deferred=True)
