"""Builds SSA with block arguments while the tree is walked (Braun et al., "Simple and Efficient Construction of SSA Form", 2013).

Variables are written and read by name; a block that control may reach from several places asks for an argument only when a variable
is read there. A block is sealed once all its predecessors are known; until then its arguments stay open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ramet.ir.module import Block, Function, ValueNames
from ramet.ir.ops import Br, CondBr, Op, Return, Target, map_operands, map_targets
from ramet.ir.types import Location, Type, Value


@dataclass(slots=True)
class _Argument:
    """A block argument in the making: the variable it carries, and what each predecessor passes."""

    variable: str
    value: Value
    passed: dict[int, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Draft:
    """A block in the making."""

    id: int
    sealed: bool = False
    predecessors: list[int] = field(default_factory=list)
    arguments: list[_Argument] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    variables: dict[str, Value] = field(default_factory=dict)
    ended: bool = False


class SsaBuilder:
    def __init__(self, undefined: Callable[[str], Value]) -> None:
        """`undefined(name)` makes, in the entry, the value of a variable read where nothing has been assigned."""
        self._undefined = undefined
        self.values = ValueNames()
        self._drafts: list[Draft] = []
        self._replaced: dict[int, Value] = {}
        self.current = self.new_block()
        self.current.sealed = True
        self.parameters: list[Value] = []

    def new_block(self) -> Draft:
        self._drafts.append(Draft(len(self._drafts)))
        return self._drafts[-1]

    def parameter(self, name: str, kind: Type) -> Value:
        value = self.values.new(kind)
        self.parameters.append(value)
        self._drafts[0].variables[name] = value
        return value

    def emit(self, op: Op) -> None:
        assert not self.current.ended
        self.current.ops.append(op)

    def emit_first(self, op: Op) -> None:
        """At the head of the entry: for values that must dominate everything."""
        self._drafts[0].ops.insert(0, op)

    def jump(self, to: Draft, loc: Location) -> None:
        self._end(Br(to=Target(to.id), loc=loc), [to])

    def branch(self, test: Value, then: Draft, otherwise: Draft, loc: Location) -> None:
        self._end(CondBr(test=test, then=Target(then.id), otherwise=Target(otherwise.id), loc=loc), [then, otherwise])

    def leave(self, state: Value, value: Value, loc: Location) -> None:
        self._end(Return(state=state, value=value, loc=loc), [])

    def _end(self, op: Op, following: list[Draft]) -> None:
        self.emit(op)
        self.current.ended = True
        for draft in following:
            draft.predecessors.append(self.current.id)

    def start(self, draft: Draft, *, seal: bool = True) -> None:
        """Go on in `draft`."""
        self.current = draft
        if seal:
            self.seal(draft)

    def seal(self, draft: Draft) -> None:
        if draft.sealed:
            return
        draft.sealed = True
        for argument in list(draft.arguments):
            self._fill(draft, argument)

    def write(self, variable: str, value: Value) -> None:
        self.current.variables[variable] = value

    def read(self, variable: str) -> Value:
        return self._read(variable, self.current)

    def _read(self, variable: str, draft: Draft) -> Value:
        if variable in draft.variables:
            return draft.variables[variable]
        if draft.id == 0:
            value = self._undefined(variable)
        elif draft.sealed and len(draft.predecessors) == 1:
            value = self._read(variable, self._drafts[draft.predecessors[0]])
        else:
            return self._new_argument(variable, draft)
        draft.variables[variable] = value
        return value

    def _new_argument(self, variable: str, draft: Draft) -> Value:
        first = self._read(variable, self._drafts[draft.predecessors[0]])
        if variable in draft.variables:  # the way up led around a loop, back through this block
            return draft.variables[variable]
        argument = _Argument(variable, self.values.new(first.type if first.type.linear else Type.JSON))
        draft.arguments.append(argument)
        draft.variables[variable] = argument.value
        if draft.sealed:
            self._fill(draft, argument)
        return argument.value

    def _fill(self, draft: Draft, argument: _Argument) -> None:
        for predecessor in draft.predecessors:
            argument.passed[predecessor] = self._read(argument.variable, self._drafts[predecessor])

    def finish(self, name: str, params: tuple[str, ...]) -> Function:
        """The function, without the arguments that always carry one and the same value."""
        self._drop_trivial()
        drafts = [draft for draft in self._drafts if draft.id == 0 or draft.predecessors]
        return Function(name, params, tuple(self._block(draft) for draft in drafts))

    def _drop_trivial(self) -> None:
        changed = True
        while changed:
            changed = False
            for draft in self._drafts:
                for argument in list(draft.arguments):
                    incoming = {self._final(value) for value in argument.passed.values()} - {argument.value}
                    if len(incoming) == 1:
                        self._replaced[argument.value.id] = incoming.pop()
                        draft.arguments.remove(argument)
                        changed = True

    def _final(self, value: Value) -> Value:
        while value.id in self._replaced:
            value = self._replaced[value.id]
        return value

    def _block(self, draft: Draft) -> Block:
        args = tuple(self.parameters) if draft.id == 0 else tuple(argument.value for argument in draft.arguments)
        return Block(
            draft.id,
            args,
            tuple(map_targets(map_operands(op, self._final), lambda target: self._target(target, draft)) for op in draft.ops),
        )

    def _target(self, target: Target, source: Draft) -> Target:
        return Target(target.block, tuple(self._final(argument.passed[source.id]) for argument in self._drafts[target.block].arguments))
