"""The textual form, for people, golden files and `--print-after-all`. `parse(print_module(m)) == m`."""

from __future__ import annotations

import json

from ramet.ir.module import Block, Function, Module
from ramet.ir.ops import LAYOUTS, Op, Target, results_of
from ramet.ir.types import Location, Value


def print_module(module: Module, *, locations: bool = True) -> str:
    """`locations=False` leaves sources and places out: shorter, for reading."""
    lines: list[str] = []
    if locations:
        lines += [f"source {_json(each.file)} {each.first_line} {_json(list(each.lines))}" for each in module.sources]
    lines += [f"grammar {_json(each.kind)} {_json(each.source)}" for each in module.grammars]
    lines += [print_function(function, locations=locations) for function in module.functions]
    return "\n".join(lines) + "\n"


def print_function(function: Function, *, locations: bool = False) -> str:
    head = f"func {function.name}({', '.join(function.params)})"
    return "\n".join([head, *(_block(block, locations) for block in function.blocks)])


def print_op(op: Op, *, locations: bool = False) -> str:
    layout = LAYOUTS[type(op)]
    outs = ", ".join(_typed(value) for value in results_of(op))
    words = ", ".join([_operand(getattr(op, name)) for name, _ in layout.uses] + [_target(getattr(op, name)) for name in layout.targets])
    pieces = [f"{outs} = {layout.name}" if outs else layout.name, words]
    for name, default in layout.attributes:
        value = getattr(op, name)
        if value != default or type(value) is not type(default):
            pieces.append(f"{name}={_json(value)}")
    if locations and op.loc != Location():
        pieces.append(_location(op.loc))
    return " ".join(piece for piece in pieces if piece)


def _block(block: Block, locations: bool) -> str:
    args = ", ".join(_typed(value) for value in block.args)
    return "\n".join([f"^{block.id}({args})", *(f"  {print_op(op, locations=locations)}" for op in block.ops)])


def _typed(value: Value) -> str:
    return f"%{value.id}:{value.type}"


def _operand(held: Value | tuple[Value, ...] | None) -> str:
    if held is None:
        return "_"
    if isinstance(held, Value):
        return f"%{held.id}"
    return f"[{', '.join(f'%{value.id}' for value in held)}]"


def _target(target: Target) -> str:
    return f"^{target.block}({', '.join(f'%{value.id}' for value in target.args)})"


def _location(loc: Location) -> str:
    return f"@{loc.source}:{loc.line}:{loc.col}-{loc.end_col}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=False)
