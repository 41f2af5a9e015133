"""Which part of a JSON schema is to blame: the smallest subschema that fails by itself with the same message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAPS = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")
"""Definitions first: what is wrong in one is not the fault of who refers to it."""
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLES = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "additionalItems")
MAX_ATTEMPTS = 200

Explain = Callable[[Any], str | None]
"""Subschema → why it does not compile; None when it does."""


def blame(schema: Any, explain: Explain) -> str:
    """JSON pointer ("" is the whole schema) of the deepest subschema that `explain` refuses for the reason the whole is refused."""
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    reason, pointer, left = explain(schema), "", MAX_ATTEMPTS
    current = schema
    while isinstance(current, Mapping):
        for step, child in _children(current):
            left -= 1
            if left < 0:
                return pointer
            if isinstance(child, Mapping) and explain({**definitions, **child} if _refers(child) else child) == reason:
                pointer, current = pointer + step, child
                break
        else:
            return pointer
    return pointer


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in MAPS:
        if isinstance(schema.get(key), Mapping):
            yield from ((f"/{key}/{_token(name)}", child) for name, child in schema[key].items())
    for key in LISTS:
        if isinstance(schema.get(key), list):
            yield from ((f"/{key}/{index}", child) for index, child in enumerate(schema[key]))
    yield from ((f"/{key}", schema[key]) for key in SINGLES if key in schema)


def _refers(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        return "$ref" in schema or any(_refers(child) for child in schema.values())
    return isinstance(schema, list) and any(_refers(child) for child in schema)


def _token(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
