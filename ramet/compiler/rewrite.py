"""What passes have in common: replacing values, and applying a change to each function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from ramet.ir.module import Function, Module
from ramet.ir.ops import Const, Op, map_operands, operands_of
from ramet.ir.types import Type, Value

Scalar = str | int | float | bool | None
SCALAR_TYPES = (Type.TEXT, Type.INT, Type.FLOAT, Type.BOOL, Type.NONE)


def each_function(module: Module, change: Callable[[Function], Function]) -> Module:
    """The same module object if no function changed."""
    changed = tuple(change(function) for function in module.functions)
    return module if all(new is old for new, old in zip(changed, module.functions, strict=True)) else module.with_functions(changed)


def map_ops(function: Function, change: Callable[[Op], Op]) -> Function:
    """Each op replaced by `change(op)`; the same function object if that is every op itself."""
    blocks = [block.with_ops([change(op) for op in block.ops]) for block in function.blocks]
    same = all(
        new is old for after, before in zip(blocks, function.blocks, strict=True) for new, old in zip(after.ops, before.ops, strict=True)
    )
    return function if same else function.with_blocks(blocks)


def substitute(function: Function, replacements: Mapping[int, Value]) -> Function:
    """Every use of a replaced value uses its replacement, followed to the end of the chain."""
    if not replacements:
        return function

    def final(value: Value) -> Value:
        while value.id in replacements:
            value = replacements[value.id]
        return value

    return function.with_blocks([block.with_ops([map_operands(op, final) for op in block.ops]) for block in function.blocks])


def use_counts(function: Function) -> Counter[int]:
    return Counter(value.id for op in function.ops() for value in operands_of(op))


def scalars(function: Function) -> dict[int, Scalar]:
    """Value id → value, for constants that cannot change."""
    return {op.out.id: op.value for op in function.ops() if isinstance(op, Const) and op.out.type in SCALAR_TYPES}
