"""JSON as requests bring it. What floats cannot hold, or no text can, is refused with its JSON pointer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ramet.errors import GrammarError
from ramet.grammar.schema_resources import escape

MAX_DIGITS = 400
"""Of a whole number. All that floats can hold have fewer."""
LONG = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
SURROGATE = re.compile("[\ud800-\udfff]")
MAY_BE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def read_json(source: str, kind: str) -> Any:
    """The value that `source`, a constraint of this kind, is. Raises `JSONDecodeError` where it is none."""
    return _Reader(source, kind).whole()


def read_json_at(source: str, start: int, kind: str) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends."""
    return _Reader(source, kind).at(start)


@dataclass(frozen=True, slots=True)
class _Unheld:
    """Stands in a value for a number that cannot."""

    why: str


class _Reader:
    def __init__(self, source: str, kind: str) -> None:
        self._source = source
        self._kind = kind
        self._is_held = True
        parse_int = self._integer if LONG.search(source) else None
        self._decoder = json.JSONDecoder(parse_constant=self._unheld, parse_float=self._float, parse_int=parse_int)

    def whole(self) -> Any:
        return self._checked(self._decoder.decode(self._source))

    def at(self, start: int) -> tuple[Any, int]:
        value, end = self._decoder.raw_decode(self._source, start)
        return self._checked(value), end

    def _float(self, text: str) -> float | _Unheld:
        value = float(text)
        is_lost = math.isinf(value) or (value == 0 and bool(re.match(r"-?[0.]*[1-9]", text)))
        return self._unheld(text) if is_lost else value

    def _integer(self, text: str) -> int | _Unheld:
        return int(text) if len(text.lstrip("-")) <= MAX_DIGITS else self._mark(f"too large a number; the limit is {MAX_DIGITS} digits")

    def _unheld(self, text: str) -> _Unheld:
        return self._mark(f"{text[:40]}, which is no number of JSON that floats can hold")

    def _mark(self, why: str) -> _Unheld:
        self._is_held = False
        return _Unheld(why)

    def _checked(self, value: Any) -> Any:
        if self._is_held and not MAY_BE_SURROGATE.search(self._source):
            return value
        for what, where in _flaws(value, ""):
            raise GrammarError(f"{self._kind} holds {what}", where=where or "#", param=self._kind)
        return value


def _flaws(value: Any, pointer: str) -> Iterator[tuple[str, str]]:
    """What is wrong, and where. A name that is no text stands in no pointer: there it is that of its object."""
    if isinstance(value, _Unheld):
        yield value.why, pointer
    elif isinstance(value, str):
        if SURROGATE.search(value):
            yield "half of a surrogate pair, which is no text", pointer
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flaws(item, f"{pointer}/{index}")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _flaws(name, pointer)
            yield from _flaws(item, f"{pointer}/{escape(name)}")
