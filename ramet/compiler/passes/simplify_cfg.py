"""Fewer blocks: unreachable ones go, a block with one predecessor joins it, jumps to jumps are shortened, arguments that always carry
the same value disappear."""

from __future__ import annotations

from dataclasses import replace

from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import each_function, substitute
from ramet.ir.control_flow import predecessors, reverse_postorder
from ramet.ir.module import Block, Function, Module
from ramet.ir.ops import Br, Op, Target, map_targets, operands_of, targets_of
from ramet.ir.types import Value


def simplify_cfg(module: Module, notes: Notes) -> Module:
    return each_function(module, lambda function: _to_the_end(function, notes))


def _to_the_end(function: Function, notes: Notes) -> Function:
    while True:
        new = _merge(_thread(_same_arguments(_reachable(function, notes))))
        if new is function:
            return function
        function = new


def _reachable(function: Function, notes: Notes) -> Function:
    alive = set(reverse_postorder(function))
    if len(alive) == len(function.blocks):
        return function
    for block in function.blocks:
        if block.id not in alive:
            notes.did(block.ops[0].loc, "this is never reached")
    return function.with_blocks([block for block in function.blocks if block.id in alive])


def _incoming(function: Function) -> dict[int, list[Target]]:
    found: dict[int, list[Target]] = {block.id: [] for block in function.blocks}
    for block in function.blocks:
        for target in targets_of(block.terminator):
            found[target.block].append(target)
    return found


def _same_arguments(function: Function) -> Function:
    """An argument to which every jump passes one and the same value (or itself) is that value."""
    incoming = _incoming(function)
    for block in function.blocks[1:]:
        for position, argument in enumerate(block.args):
            passed = {target.args[position] for target in incoming[block.id]} - {argument}
            if len(passed) == 1:
                return substitute(_without_argument(function, block, position), {argument.id: passed.pop()})
    return function


def _without_argument(function: Function, block: Block, position: int) -> Function:
    def shorten(target: Target) -> Target:
        return Target(target.block, _drop(target.args, position)) if target.block == block.id else target

    blocks = [each.with_ops([*each.ops[:-1], map_targets(each.terminator, shorten)]) for each in function.blocks]
    return function.with_blocks([replace(each, args=_drop(each.args, position)) if each.id == block.id else each for each in blocks])


def _drop(values: tuple[Value, ...], position: int) -> tuple[Value, ...]:
    return values[:position] + values[position + 1 :]


def _thread(function: Function) -> Function:
    """A jump to a block that only jumps on goes where that goes. (The block's arguments may be used nowhere else.)"""
    used = {value.id for block in function.blocks for op in block.ops for value in _plain_uses(op, block)}
    for block in function.blocks[1:]:
        end = block.terminator
        if (
            len(block.ops) != 1
            or not isinstance(end, Br)
            or end.to.block == block.id
            or any(argument.id in used for argument in block.args)
        ):
            continue
        onward, arguments = end.to, block.args

        def skip(target: Target, block: Block = block, onward: Target = onward, arguments: tuple[Value, ...] = arguments) -> Target:
            if target.block != block.id:
                return target
            passed = dict(zip((argument.id for argument in arguments), target.args, strict=True))
            return Target(onward.block, tuple(passed.get(value.id, value) for value in onward.args))

        blocks = [each.with_ops([*each.ops[:-1], map_targets(each.terminator, skip)]) for each in function.blocks if each.id != block.id]
        return function.with_blocks(blocks)
    return function


def _plain_uses(op: Op, block: Block) -> list[Value]:
    """Uses other than a lone jump's passing on of its own block's arguments."""
    lone = len(block.ops) == 1 and isinstance(op, Br)
    return [value for value in operands_of(op) if not (lone and value in block.args)]


def _merge(function: Function) -> Function:
    before = predecessors(function)
    for block in function.blocks:
        end = block.terminator
        if not isinstance(end, Br) or end.to.block == block.id or len(before[end.to.block]) != 1 or end.to.block == function.entry.id:
            continue
        following = function.block(end.to.block)
        joined = Block(block.id, block.args, (*block.ops[:-1], *following.ops))
        blocks = [joined if each.id == block.id else each for each in function.blocks if each.id != following.id]
        replacements = {argument.id: value for argument, value in zip(following.args, end.to.args, strict=True)}
        return substitute(function.with_blocks(blocks), replacements)
    return function
