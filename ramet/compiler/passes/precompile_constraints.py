"""Collects the constraints that are known before the run, so that a server compiles them when the program is registered and not when
its first token is due."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from ramet.compiler.pipeline import Notes
from ramet.ir.module import Function, Grammar, Module
from ramet.ir.ops import Const, Gen, Select

KINDS = ("regex", "json_schema", "ebnf", "dtype")


def precompile_constraints(module: Module, notes: Notes) -> Module:
    found = dict.fromkeys(grammar for function in module.functions for grammar in _of(function, notes))
    grammars = tuple(found)
    return module if grammars == module.grammars else replace(module, grammars=grammars)


def _of(function: Function, notes: Notes) -> Iterator[Grammar]:
    known = {op.out.id: op.value for op in function.ops() if isinstance(op, Const)}
    for op in function.ops():
        if isinstance(op, Select) and op.choices.id in known:
            yield Grammar("choices", json.dumps(known[op.choices.id]))
        for key, value in zip(op.keys, op.args, strict=True) if isinstance(op, Gen) else ():
            if key in KINDS and value.id in known and known[value.id] is not None:
                source = known[value.id]
                notes.did(op.loc, f"its {key} is compiled with the program")
                yield Grammar(key, source if isinstance(source, str) else json.dumps(source))
            elif key in KINDS and value.id not in known:
                notes.did_not(op.loc, f"its {key} is only known when the program runs")
