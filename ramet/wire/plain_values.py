"""Arguments and results of programs as JSON, without losing what Python knows of them: tuples, other keys than texts, big numbers.

JSON's own values stand for themselves. Everything else is an object with one key that begins with "~":

    (1, 2) → {"~tuple": [1, 2]}      {1: "a"} → {"~dict": [[1, "a"]]}      range(3) → {"~range": [0, 3, 1]}
    inf → {"~float": "inf"}          an object of the host → {"~host": [number, "kind", content]}
"""

from __future__ import annotations

import math
from typing import Any

from ramet.errors import InvalidRequest
from ramet.ir.host_object import HostObject

MAX_DEPTH = 200
_JSON_INT = 1 << 53


def to_json(value: Any, depth: int = 0) -> Any:
    """Raises InvalidRequest for what is no plain value."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"a value nests deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < _JSON_INT else {"~int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"~float": repr(float(value))}
    if isinstance(value, list):
        return [to_json(each, depth + 1) for each in value]
    if isinstance(value, tuple):
        return {"~tuple": [to_json(each, depth + 1) for each in value]}
    if isinstance(value, dict):
        return _dict_to_json(value, depth + 1)
    if isinstance(value, range):
        return {"~range": [to_json(each) for each in (value.start, value.stop, value.step)]}
    if isinstance(value, HostObject):
        return {"~host": [value.number, value.kind, value.content]}
    raise InvalidRequest(f"a {type(value).__name__} cannot travel; use text, numbers, lists and dicts")


def _dict_to_json(value: dict[Any, Any], depth: int) -> Any:
    if all(isinstance(key, str) and not key.startswith("~") for key in value):
        return {key: to_json(each, depth) for key, each in value.items()}
    return {"~dict": [[to_json(key, depth), to_json(each, depth)] for key, each in value.items()]}


def from_json(value: Any, depth: int = 0) -> Any:
    """Trusts nothing; raises InvalidRequest."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"a value nests deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [from_json(each, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(key, inner)] = value.items()
        if key.startswith("~"):
            return _tagged(key, inner, depth + 1)
    return {key: from_json(each, depth + 1) for key, each in value.items()}


def _tagged(tag: str, inner: Any, depth: int) -> Any:
    try:
        match tag, inner:
            case "~tuple", list():
                return tuple(from_json(each, depth) for each in inner)
            case "~dict", list():
                return {from_json(key, depth): from_json(each, depth) for key, each in inner}
            case "~range", [int(), int(), int()]:
                return range(*inner)
            case "~float", "inf" | "-inf" | "nan":
                return float(inner)
            case "~int", str() if len(inner) < 1 << 14:
                return int(inner, 16)
            case "~host", [int(number), str(kind), None | str() as content]:
                return HostObject(number, kind[:80], content)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{tag}: {error}") from None
    raise InvalidRequest(f"{tag[:40]!r} is no tag of a value; known: ~tuple, ~dict, ~range, ~float, ~int, ~host")
