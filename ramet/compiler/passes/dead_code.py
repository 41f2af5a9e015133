"""Removes what nobody uses: pure ops, block arguments, functions that are no longer called."""

from __future__ import annotations

from dataclasses import replace

from ramet.compiler.analysis.effects import removable
from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import each_function
from ramet.ir.module import Function, Module
from ramet.ir.ops import Const, Op, ProgramCall, Target, map_targets, operands_of, results_of, targets_of
from ramet.ir.types import Value


def dead_code(module: Module, notes: Notes) -> Module:
    module = each_function(module, lambda function: _clean(function, notes))
    called = _called(module)
    if len(called) == len(module.functions):
        return module
    return module.with_functions([function for function in module.functions if function.name in called])


def _called(module: Module) -> set[str]:
    seen: set[str] = set()
    stack = [module.main.name]
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            stack.extend(op.function for op in module.function(name).ops() if isinstance(op, ProgramCall))
    return seen


def _clean(function: Function, notes: Notes) -> Function:
    """Mark what is needed, starting from what has an effect; sweep the rest."""
    needed = _needed(function)
    dead_arguments = {(block.id, i) for block in function.blocks[1:] for i, argument in enumerate(block.args) if argument.id not in needed}
    dead = {id(op) for op in function.ops() if removable(op) and not any(value.id in needed for value in results_of(op))}
    if not dead and not dead_arguments:
        return function
    for op in function.ops():
        if id(op) in dead and not isinstance(op, Const):
            notes.did(op.loc, "removed: nothing uses it")

    def shorten(target: Target) -> Target:
        return Target(target.block, tuple(value for i, value in enumerate(target.args) if (target.block, i) not in dead_arguments))

    return function.with_blocks(
        [
            replace(
                block,
                args=tuple(argument for i, argument in enumerate(block.args) if (block.id, i) not in dead_arguments),
                ops=tuple(map_targets(op, shorten) for op in block.ops if id(op) not in dead),
            )
            for block in function.blocks
        ]
    )


def _needed(function: Function) -> set[int]:
    made = function.definitions()
    carried = {argument.id: (block.id, i) for block in function.blocks[1:] for i, argument in enumerate(block.args)}
    incoming: dict[int, list[Target]] = {block.id: [] for block in function.blocks}
    for block in function.blocks:
        for target in targets_of(block.terminator):
            incoming[target.block].append(target)
    needed: set[int] = set()
    stack = [value.id for op in function.ops() if not removable(op) for value in _own_operands(op)]
    while stack:
        value = stack.pop()
        if value in needed:
            continue
        needed.add(value)
        if value in carried:
            block_id, position = carried[value]
            stack.extend(target.args[position].id for target in incoming[block_id])
        elif value in made:
            stack.extend(each.id for each in _own_operands(made[value]))
    return needed


def _own_operands(op: Op) -> list[Value]:
    """Without what jumps pass on: that is needed only if the argument is."""
    passed = [value for target in targets_of(op) for value in target.args]
    every = operands_of(op)
    return every[: len(every) - len(passed)]
