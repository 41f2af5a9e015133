"""A tool call as one JSON object: {"name": …, "arguments": {…}}."""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any

from ramet.server.parsers.json_scanner import is_text, parsed, read_json, read_text, stream_object
from ramet.server.parsers.scan import Mismatch, Scan, Steps

ARGUMENTS = ("arguments", "parameters")


def read_call_object(scan: Scan, tools: Container[str], *, bare: bool = False) -> Steps[bool]:
    """Once the name of a known tool and the first character of its arguments are read, the call stands; before that, anything else is a
    `Mismatch`. The fields may come in any order; further ones are skipped. `bare`: nothing but the object itself marks it as a call, so
    its arguments may not be left out."""
    yield from scan.expect("{")
    name: str | None = None
    arguments: str | None = None  # "" once they are passed on
    while True:
        key = yield from _key(scan)
        if key == "name" and name is None:
            name = yield from read_text(scan)
            if name not in tools:
                raise Mismatch
            if arguments is not None:
                _emit(scan, name, arguments)
        elif key in ARGUMENTS and arguments is None:
            arguments = yield from read_arguments(scan, name)
        else:
            yield from read_json(scan)
        if not (yield from _has_more(scan)):
            break
    if name is None or (arguments is None and bare):
        raise Mismatch
    if arguments is None:
        _emit(scan, name, "{}")
    return True


def read_arguments(scan: Scan, name: str | None) -> Steps[str]:
    """An object, which streams if the call's name is known; or the text of an object; or null. Returns what is still to be passed on."""
    char = yield from scan.peek()
    if char == "{" and name is not None:
        scan.begin_call(name)
        yield from stream_object(scan)
        return ""
    start = scan.num_held
    arguments = as_arguments((yield from read_json(scan)), scan.held(start))
    if name is not None:
        _emit(scan, name, arguments)
        return ""
    return arguments


def as_arguments(value: Any, source: str) -> str:
    """The JSON text of an arguments object, from what the model wrote as its value."""
    if isinstance(value, str):
        source, value = value, parsed(value or "{}")
        if not is_text(source):
            raise Mismatch
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise Mismatch
    return source or json.dumps(value)


def _emit(scan: Scan, name: str, arguments: str) -> None:
    scan.begin_call(name)
    scan.arguments(arguments)


def _key(scan: Scan) -> Steps[str]:
    yield from scan.spaces()
    key = yield from read_text(scan)
    yield from scan.spaces()
    yield from scan.expect(":")
    yield from scan.spaces()
    return key


def _has_more(scan: Scan) -> Steps[bool]:
    """Behind a field: the comma of another one, or the end."""
    yield from scan.spaces()
    char = yield from scan.peek()
    if char not in (",", "}", ""):
        raise Mismatch
    yield from scan.take()
    return char == ","
