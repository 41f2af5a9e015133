"""What waits for what: memory that ops may share, and chains of generations."""

from __future__ import annotations

from ramet.compiler.analysis.effects import CONTAINERS, writes
from ramet.ir.module import Function
from ramet.ir.ops import (
    Call,
    Gen,
    GetVar,
    HostCall,
    Index,
    MakeDict,
    MakeList,
    ProgramCall,
    Select,
    SetVar,
    operands_of,
    results_of,
    targets_of,
)
from ramet.ir.types import Value

_INSIDE = -1  # all that lies inside of some list, dict or variable: one class, since indexes are not known


class SharedMemory:
    """Values in one class may be the same list or dict. A class that is written may not be read at another time than Python would."""

    def __init__(self, function: Function) -> None:
        self._parents: dict[int, int] = {}
        blocks = {block.id: block for block in function.blocks}
        for block in function.blocks:
            for target in targets_of(block.terminator):
                for argument, passed in zip(blocks[target.block].args, target.args, strict=True):
                    self._unite(argument, passed.id)
        for op in function.ops():
            if isinstance(op, MakeList | MakeDict):
                for item in op.items:
                    self._unite(item, _INSIDE)
            elif isinstance(op, Index | GetVar):
                self._unite(op.out, _INSIDE)
            elif isinstance(op, SetVar):
                self._unite(op.value, _INSIDE)
            elif isinstance(op, Call):
                self._call(op)
            elif isinstance(op, ProgramCall):
                for value in (*op.args, op.value):
                    self._unite(value, _INSIDE)
        self._written = {self._root(op.args[0].id) for op in function.ops() if isinstance(op, Call) and writes(op) and op.args}

    def _call(self, op: Call) -> None:
        """A builtin may return one of its arguments, or what lies inside of them; what is put into a container lies inside."""
        if writes(op):
            for value in (*op.args[1:], op.out):
                self._unite(value, _INSIDE)
            if op.function == "iadd":
                self._parents[self._root(op.out.id)] = self._root(op.args[0].id)
        elif op.function in ("iterate", "bound", "add", "slice"):
            for value in op.args:
                if value.type in CONTAINERS and op.out.type in CONTAINERS:
                    self._parents[self._root(op.out.id)] = self._root(value.id)
        else:
            self._unite(op.out, _INSIDE)

    def written(self, value: Value) -> bool:
        return value.type in CONTAINERS and self._root(value.id) in self._written

    def _unite(self, value: Value, other: int) -> None:
        if value.type in CONTAINERS:
            self._parents[self._root(value.id)] = self._root(other)

    def _root(self, value: int) -> int:
        while self._parents.get(value, value) != value:
            value = self._parents[value]
        return value


def waits(op: object) -> bool:
    """Does the op take the time of a model or a host?"""
    return isinstance(op, Gen | Select | HostCall | ProgramCall)


def depths(function: Function) -> dict[int, int]:
    """Value id → how many waiting ops lie on the longest chain up to it. Each loop counts once."""
    found: dict[int, int] = {}
    blocks = {block.id: block for block in function.blocks}
    for block in function.blocks:
        for op in block.ops:
            depth = max((found.get(value.id, 0) for value in operands_of(op)), default=0) + waits(op)
            for result in results_of(op):
                found[result.id] = depth
            for target in targets_of(op):
                for argument, passed in zip(blocks[target.block].args, target.args, strict=True):
                    found[argument.id] = max(found.get(argument.id, 0), found.get(passed.id, 0))
    return found


def heights(function: Function) -> dict[int, int]:
    """Value id → how many waiting ops lie on the longest chain that begins with it."""
    found: dict[int, int] = {}
    blocks = {block.id: block for block in function.blocks}
    for block in reversed(function.blocks):
        for op in reversed(block.ops):
            for target in targets_of(op):
                for argument, passed in zip(blocks[target.block].args, target.args, strict=True):
                    found[passed.id] = max(found.get(passed.id, 0), found.get(argument.id, 0))
            height = max((found.get(value.id, 0) for value in results_of(op)), default=0) + waits(op)
            for value in operands_of(op):
                found[value.id] = max(found.get(value.id, 0), height)
    return found
