"""Puts the body of a called program in the place of the call.

A callee with a conversation of its own is inlined only if it is straight-line: one that branches on what it generates is better left
a call, which can run beside the caller. A callee that goes on in the caller's conversation has nothing to run beside, and is inlined.
"""

from __future__ import annotations

from dataclasses import replace

from ramet.compiler.pipeline import Notes
from ramet.ir.module import Block, Function, Module, ValueNames
from ramet.ir.ops import Br, Op, Open, ProgramCall, Return, Target, map_operands, map_results, map_targets
from ramet.ir.types import Value

MAX_CALLEE_OPS = 200
MAX_FUNCTION_OPS = 2000


def inline(module: Module, notes: Notes) -> Module:
    """Innermost calls first, so that a chain of straight-line programs becomes one."""
    done: dict[str, Function] = {}
    for function in reversed(module.functions):
        done[function.name] = _inline_all(function, {each.name: done.get(each.name, each) for each in module.functions}, notes)
    functions = tuple(done[function.name] for function in module.functions)
    return module if all(new is old for new, old in zip(functions, module.functions, strict=True)) else module.with_functions(functions)


def _inline_all(function: Function, known: dict[str, Function], notes: Notes) -> Function:
    refused: set[int] = set()
    while True:
        found = next(
            ((b, i) for b in function.blocks for i, op in enumerate(b.ops) if isinstance(op, ProgramCall) and op.out.id not in refused),
            None,
        )
        if found is None:
            return function
        block, position = found
        call = block.ops[position]
        assert isinstance(call, ProgramCall)
        problem = _problem(function, known[call.function], call)
        if problem is None:
            notes.did(call.loc, f"{call.function} runs in place")
            function = _splice(function, block, position, call, known[call.function])
        else:
            notes.did_not(call.loc, f"{call.function} stays a call: {problem}")
            refused.add(call.out.id)


def _problem(function: Function, callee: Function, call: ProgramCall) -> str | None:
    own = isinstance(function.definitions().get(call.state.id), Open)
    if callee.name == function.name or any(isinstance(op, ProgramCall) for op in callee.ops()):
        return "it calls programs itself"
    if own and len(callee.blocks) > 1:
        return "it branches, and as a call it can run beside its caller"
    size = sum(len(block.ops) for block in callee.blocks)
    if size > MAX_CALLEE_OPS or size + sum(len(block.ops) for block in function.blocks) > MAX_FUNCTION_OPS:
        return f"it has {size} ops"
    return None


def _splice(function: Function, block: Block, position: int, call: ProgramCall, callee: Function) -> Function:
    """The block ends with a jump into a copy of the callee; its returns jump to what came after the call."""
    copy = _Copy(function, callee, max(each.id for each in function.blocks) + 1)
    after = Block(copy.after, (call.out, call.value), block.ops[position + 1 :])
    enter = Br(to=Target(copy.block(callee.entry.id), (call.state, *call.args)), loc=call.loc)
    before = replace(block, ops=(*block.ops[:position], enter))
    blocks = [before if each.id == block.id else each for each in function.blocks]
    return function.with_blocks([*blocks, *copy.blocks(), after])


class _Copy:
    """The callee with fresh value and block numbers."""

    def __init__(self, function: Function, callee: Function, first_block: int) -> None:
        self._callee = callee
        self._names = ValueNames.after(function)
        self._values: dict[int, Value] = {}
        self._blocks = {block.id: first_block + i for i, block in enumerate(callee.blocks)}
        self.after = first_block + len(callee.blocks)

    def block(self, block_id: int) -> int:
        return self._blocks[block_id]

    def blocks(self) -> list[Block]:
        made = []
        for block in self._callee.blocks:
            args = tuple(self._value(value) for value in block.args)
            made.append(Block(self._blocks[block.id], args, tuple(self._op(op) for op in block.ops)))
        return made

    def _value(self, value: Value) -> Value:
        if value.id not in self._values:
            self._values[value.id] = self._names.new(value.type)
        return self._values[value.id]

    def _op(self, op: Op) -> Op:
        if isinstance(op, Return):
            return Br(to=Target(self.after, (self._value(op.state), self._value(op.value))), loc=op.loc)
        moved = map_results(map_operands(op, self._value), self._value)
        return map_targets(moved, lambda target: Target(self._blocks[target.block], target.args))
