"""Pythonic: [name(key=value, …), …] with Python literals. A call's arguments pass on when it is complete: they become JSON as a whole."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Container
from typing import Any

from ramet.server.parsers.json_scanner import is_text
from ramet.server.parsers.scan import Mismatch, Scan, Steps
from ramet.server.parsers.tool_format import Wire

JSON_NAMES = {"true": True, "false": False, "null": None}
"""Models that were trained on JSON mix them in."""
MAX_DEPTH = 100


class PythonicFormat:
    name = "pythonic"
    wire = Wire(opening="[", body="(", tail=")", separator=", ", closing="]", python_arguments=True)

    def read(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        while (yield from scan.find(("[",))):
            more = yield from scan.attempt(self._call(scan, tools))
            while more and (yield from scan.attempt(self._has_more(scan), in_call=True)):
                more = yield from scan.attempt(self._call(scan, tools))

    def _call(self, scan: Scan, tools: Container[str]) -> Steps[bool]:
        yield from scan.spaces()
        name = yield from scan.word()
        if name not in tools:
            raise Mismatch
        yield from scan.expect("(")
        start = scan.num_held
        yield from _skip_to_closing(scan)
        arguments = json_arguments(scan.held(start)[:-1])
        scan.begin_call(name)
        scan.arguments(arguments)
        return True

    def _has_more(self, scan: Scan) -> Steps[bool]:
        yield from scan.spaces()
        if (yield from scan.peek()) not in (",", "]", ""):
            raise Mismatch
        return (yield from scan.take()) == ","


def json_arguments(source: str) -> str:
    """`a=1, b='x'` as a JSON object."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes in strings
            call = ast.parse(f"f({source}\n)", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise Mismatch
        if any(keyword.arg is None for keyword in call.keywords):  # **more
            raise Mismatch
        values = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        if not is_text(text):
            raise Mismatch
        return text
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise Mismatch from error


def python_arguments(source: str) -> str:
    """The inverse: a JSON object as `a=1, b='x'`. Raises `ValueError` where it is none."""
    values = json.loads(source)
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _value(node: ast.expr) -> Any:
    """What a literal stands for, with JSON's names for true, false and null among them."""
    match node:
        case ast.Name(id=name) if name in JSON_NAMES:
            return JSON_NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case _:
            return ast.literal_eval(node)


def _key(node: ast.expr | None) -> str:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        raise Mismatch
    return node.value


def _skip_to_closing(scan: Scan) -> Steps[None]:
    """Up to the parenthesis that closes the one before, past strings and brackets."""
    depth = 1
    while depth:
        char = yield from scan.take()
        if char in "'\"":
            yield from _skip_string(scan, char)
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise Mismatch


def _skip_string(scan: Scan, quote: str) -> Steps[None]:
    while (char := (yield from scan.take())) != quote:
        if char == "\n":
            raise Mismatch
        if char == "\\":
            yield from scan.take()
