"""Computes once what would be computed twice: pure ops, reads of what a generation just set, and whole programs where that is safe.

Two generations may only be merged where they are provably equal: the same program on the same arguments in a conversation of its
own, greedy throughout, and nobody goes on in the second conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ramet.compiler.analysis.effects import CONTAINERS, is_pure, writes
from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import SCALAR_TYPES, each_function, scalars, substitute
from ramet.ir.control_flow import dominates, dominators, reverse_postorder
from ramet.ir.module import Function, Module
from ramet.ir.ops import (
    Append,
    Call,
    Const,
    Fork,
    Gen,
    GetVar,
    HostCall,
    Op,
    Open,
    ProgramCall,
    Select,
    SetVar,
    consumed_by,
)
from ramet.ir.types import Type, Value

Key: TypeAlias = tuple[object, ...]


def common_subexpression(module: Module, notes: Notes) -> Module:
    return each_function(module, lambda function: _Merger(module, function, notes).merge())


class _Merger:
    def __init__(self, module: Module, function: Function, notes: Notes) -> None:
        self._module, self._function, self._notes = module, function, notes
        self._made = function.definitions()
        self._known = scalars(function)
        self._idoms = dominators(function)
        self._writes = any(writes(op) for op in function.ops())
        self._consumed = {value.id for op in function.ops() for value in consumed_by(op)}
        self._same: dict[int, Value] = {}
        self._seen: dict[Key, list[tuple[int, Op]]] = {}
        self._gone: set[int] = set()

    def merge(self) -> Function:
        for block_id in reverse_postorder(self._function):
            for op in self._function.block(block_id).ops:
                self._visit(block_id, op)
        if not self._gone:
            return self._function
        blocks = [block.with_ops([op for op in block.ops if id(op) not in self._gone]) for block in self._function.blocks]
        return substitute(self._function.with_blocks(blocks), self._same)

    def _visit(self, block: int, op: Op) -> None:
        if isinstance(op, GetVar):
            value = self._generated(op)
            if value is not None:
                self._replace(op, {op.out: value})
                self._notes.did(op.loc, "reads what the generation gives, without a look-up")
            return
        key = self._key(op)
        if key is None:
            return
        earlier = next((each for at, each in self._seen.get(key, []) if dominates(self._idoms, at, block)), None)
        if earlier is None:
            self._seen.setdefault(key, []).append((block, op))
        elif isinstance(op, ProgramCall) and isinstance(earlier, ProgramCall):
            self._merge_programs(earlier, op)
        elif isinstance(op, Const | Call) and isinstance(earlier, Const | Call):
            self._replace(op, {op.out: earlier.out})
            if isinstance(op, Call):
                self._notes.did(op.loc, f"{op.function} was computed before")

    def _replace(self, op: Op, same: dict[Value, Value]) -> None:
        self._same |= {old.id: self._final(new) for old, new in same.items()}
        self._gone.add(id(op))

    def _final(self, value: Value) -> Value:
        while value.id in self._same:
            value = self._same[value.id]
        return value

    def _key(self, op: Op) -> Key | None:
        if isinstance(op, Const) and op.out.type in SCALAR_TYPES:
            return ("const", op.out.type, repr(op.value))
        if isinstance(op, Call) and is_pure(op) and self._is_shareable(op):
            return ("call", op.function, op.keys, *(self._final(arg) for arg in op.args))
        if isinstance(op, ProgramCall):
            opened = self._made.get(op.state.id)
            if isinstance(opened, Open) and not any(arg.type in CONTAINERS for arg in op.args if self._writes):
                args = (self._final(arg) for arg in (*opened.args, *op.args))
                return ("program", op.function, opened.keys, *args)
        return None

    def _is_shareable(self, op: Call) -> bool:
        """Not what is a new list each time, nor what reads a list that may have changed since."""
        if op.out.type in (Type.LIST, Type.DICT) or (self._writes and op.out.type in CONTAINERS):
            return False
        return not self._writes or not any(arg.type in CONTAINERS for arg in op.args)

    def _generated(self, op: GetVar) -> Value | None:
        """The value of the generation or assignment that a read must find, if that is known."""
        name = self._known.get(op.name.id)
        state = op.state
        while isinstance(name, str) and state.type is Type.STATE:
            made = self._made.get(state.id)
            if isinstance(made, Gen | Select | SetVar):
                called = made.name
                if called is not None and called.id not in self._known:
                    return None
                if called is not None and self._known[called.id] == name:
                    return made.value
                if isinstance(made, Gen) and "reasoning" in made.keys:
                    return None  # it sets a second variable
            if not isinstance(made, Append | Gen | Select | SetVar | Fork):
                return None
            state = made.state
        return None

    def _merge_programs(self, first: ProgramCall, second: ProgramCall) -> None:
        problem = self._why_not_equal(first)
        if problem is None and second.out.id in self._consumed:
            problem = "its conversation goes on"
        if problem is None:
            self._replace(second, {second.out: first.out, second.value: first.value})
            self._notes.did(second.loc, f"{second.function} ran before on the same arguments, and greedily")
        else:
            self._notes.did_not(second.loc, f"{second.function} runs again on the same arguments: {problem}")

    def _why_not_equal(self, call: ProgramCall) -> str | None:
        opened = self._made[call.state.id]
        assert isinstance(opened, Open)
        defaults = {key: self._known.get(arg.id) for key, arg in zip(opened.keys, opened.args, strict=True)}
        return _nondeterminism(self._module, self._module.function(call.function), defaults)


def _nondeterminism(module: Module, function: Function, defaults: Mapping[str, object]) -> str | None:
    known = scalars(function)
    for op in function.ops():
        if isinstance(op, HostCall | ProgramCall):
            return "it calls the host or another program"
        if (isinstance(op, Call) and writes(op)) or (_makes_container(op)):
            return "it builds lists or dicts, which are new at each run"
        if isinstance(op, Gen | Select):
            given = dict(zip(op.keys, (known.get(arg.id) for arg in op.args), strict=True))
            temperature = given.get("temperature", defaults.get("temperature", 0 if isinstance(op, Select) else None))
            if temperature != 0:
                return "it samples (give temperature=0 to make it repeatable)"
    return None


def _makes_container(op: Op) -> bool:
    return isinstance(op, Call | Const) and op.out.type in (Type.LIST, Type.DICT)
