"""Text that fits a constraint, drawn from a seeded generator: what the scripted backend says where the script does not."""

from __future__ import annotations

import json
import random
import re._constants as op  # type: ignore[import-not-found]
import re._parser as regex_parser  # type: ignore[import-not-found]
from collections.abc import Mapping
from typing import Any

_WORDS = ("the", "model", "reads", "a", "prompt", "and", "grows", "one", "shoot", "after", "another", "from", "its", "shared", "root")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 "


def words(draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(4, 12))) + "."


def matching(pattern: str, draw: random.Random) -> str:
    """A text that `pattern` matches in full. Look-around and back references are not understood (ValueError)."""
    return _sequence(regex_parser.parse(pattern), draw)


def _sequence(items: Any, draw: random.Random) -> str:
    return "".join(_item(kind, value, draw) for kind, value in items)


def _item(kind: Any, value: Any, draw: random.Random) -> str:
    match kind:
        case op.LITERAL:
            return chr(value)
        case op.NOT_LITERAL:
            return next(c for c in _ALPHABET if c != chr(value))
        case op.ANY:
            return draw.choice(_ALPHABET)
        case op.IN:
            return draw.choice(_members(value))
        case op.BRANCH:
            return _sequence(draw.choice(value[1]), draw)
        case op.SUBPATTERN:
            return _sequence(value[3], draw)
        case op.MAX_REPEAT | op.MIN_REPEAT:
            low, high, body = value
            return "".join(_sequence(body, draw) for _ in range(draw.randint(low, min(int(high), low + 3))))
        case op.AT:
            return ""
    raise ValueError(f"the scripted backend cannot invent text for {kind} in a regex; script the answer")


def _members(items: Any) -> str:
    negated = items[0][0] is op.NEGATE
    named = "".join(_member(kind, value) for kind, value in items if kind is not op.NEGATE)
    return "".join(c for c in _ALPHABET if c not in named) if negated else named


def _member(kind: Any, value: Any) -> str:
    match kind:
        case op.LITERAL:
            return chr(value)
        case op.RANGE:
            return "".join(map(chr, range(value[0], min(value[1], value[0] + 255) + 1)))
        case op.CATEGORY:
            return {op.CATEGORY_DIGIT: "0123456789", op.CATEGORY_SPACE: " ", op.CATEGORY_WORD: "abcxyz019_"}.get(value, "-")
    raise ValueError(f"the scripted backend does not know {kind} in a character class; script the answer")


def instance(schema: Any, draw: random.Random) -> Any:
    """A value of the common part of JSON Schema: enum, const, anyOf, objects, arrays, scalars, local references."""
    return _instance(schema, schema, draw)


def _instance(schema: Any, root: Any, draw: random.Random) -> Any:
    if not isinstance(schema, Mapping):
        return None
    if "$ref" in schema:
        return _instance(_resolved(schema["$ref"], root), root, draw)
    if "const" in schema:
        return schema["const"]
    for key in ("enum", "anyOf", "oneOf"):
        if key in schema:
            found = draw.choice(schema[key])
            return found if key == "enum" else _instance(found, root, draw)
    return _typed(schema, root, draw)


def _typed(schema: Mapping[str, Any], root: Any, draw: random.Random) -> Any:
    match schema.get("type"):
        case "object":
            return {name: _instance(part, root, draw) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [_instance(schema.get("items", {}), root, draw) for _ in range(max(1, schema.get("minItems", 1)))]
        case "integer":
            return draw.randint(int(schema.get("minimum", 0)), int(schema.get("maximum", schema.get("minimum", 0) + 99)))
        case "number":
            return float(draw.randint(0, 99))
        case "boolean":
            return draw.random() < 0.5
        case "string":
            return matching(schema["pattern"], draw) if "pattern" in schema else " ".join(draw.choices(_WORDS, k=3))
    return None


def _resolved(reference: str, root: Any) -> Any:
    found = root
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


def json_text(schema: str, draw: random.Random) -> str:
    return json.dumps(instance(json.loads(schema), draw))
