"""What a constraint makes of a text: from `dtype`, `json_schema` or `tools` to the server's fields and to a Python value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.errors import InvalidRequest
from ramet.lang.expressions import plain_text
from ramet.program.answer_shape import dtype_shape, source_text, tool_call_schema


@dataclass(frozen=True, slots=True)
class Shape:
    """`sampling` constrains the text on the server, `parse` turns it into the variable's value (raises ValueError)."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    parse: Callable[[str], Any] = plain_text


def shape_of(*, dtype: Any, json_schema: Any, tools: Sequence[Any] | None, regex: str | None, ebnf: str | None) -> Shape:
    """At most one constraint per generation."""
    given = {"dtype": dtype, "json_schema": json_schema, "tools": tools, "regex": regex, "ebnf": ebnf}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InvalidRequest(f"gen() takes one constraint, got {' and '.join(names)}; keep one", param=names[1])
    if dtype is not None:
        return _dtype_shape(dtype)
    if json_schema is not None:
        return _schema_shape(json_schema)
    if tools is not None:
        return Shape({"json_schema": json.dumps(tool_call_schema(tools))}, json.loads)
    if regex is not None:
        return Shape({"regex": check_regex(source_text("regex", regex))})
    return Shape({"ebnf": source_text("ebnf", ebnf)} if ebnf is not None else {})


def check_regex(pattern: str) -> str:
    """Fail on the user's line, not in a later answer. The server's dialect decides what it supports."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise InvalidRequest(f"regex {pattern!r} is not valid: {error}", param="regex") from error
    return pattern


def _dtype_shape(dtype: Any) -> Shape:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", repr(dtype))
    return Shape(*dtype_shape(name))


def _schema_shape(schema: Any) -> Shape:
    """A string stays text (as in SGLang), a dict gives the parsed JSON, a model class its validated instance."""
    if isinstance(schema, str):
        return Shape({"json_schema": schema})
    if isinstance(schema, Mapping):
        return Shape({"json_schema": json.dumps(schema)}, json.loads)
    describe, validate = getattr(schema, "model_json_schema", None), getattr(schema, "model_validate_json", None)
    if describe is None or validate is None:
        raise InvalidRequest(f"json_schema is a dict, a JSON string or a pydantic model class, not {schema!r:.80}", param="json_schema")
    return Shape({"json_schema": json.dumps(describe())}, validate)
