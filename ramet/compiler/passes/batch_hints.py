"""Tells the scheduler what the program knows: how long an answer can get, how much of the program waits for it (`path`), and which
generations become ready together (`group`)."""

from __future__ import annotations

from dataclasses import replace

from ramet.compiler.analysis.answer_length import longest_answer, longest_choice
from ramet.compiler.analysis.dependence import depths, heights
from ramet.compiler.pipeline import Notes
from ramet.compiler.rewrite import each_function, map_ops
from ramet.ir.module import Function, Module
from ramet.ir.ops import Const, Gen, Op, Select


def batch_hints(module: Module, notes: Notes) -> Module:
    return each_function(module, lambda function: _hint(function, notes))


def _hint(function: Function, notes: Notes) -> Function:
    before, after = depths(function), heights(function)
    known = {op.out.id: op.value for op in function.ops() if isinstance(op, Const)}

    def hinted(op: Op) -> Op:
        if not isinstance(op, Gen | Select):
            return op
        hints = {"path": 1 + max(after.get(op.out.id, 0), after.get(op.value.id, 0)), "group": before[op.out.id]}
        longest = _longest(op, known)
        if longest is not None:
            hints["max_tokens"] = longest
        if hints == op.hints:
            return op
        bound = f"at most {longest} tokens" if longest is not None else "length unknown"
        notes.did(op.loc, f"{hints['path']} generations from the end, {bound}")
        return replace(op, hints=hints)

    return map_ops(function, hinted)


def _longest(op: Gen | Select, known: dict[int, object]) -> int | None:
    if isinstance(op, Select):
        return longest_choice(known.get(op.choices.id))
    return longest_answer(dict(zip(op.keys, (known.get(arg.id) for arg in op.args), strict=True)))
