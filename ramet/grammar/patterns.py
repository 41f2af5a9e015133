"""Regexes that the language writes for its users: fixed choices, and values of a Python type."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from ramet.errors import GrammarError

DTYPE_PATTERNS: Mapping[str, str] = {
    "int": r"-?(?:0|[1-9][0-9]*)",
    "float": r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][+-]?[0-9]+)?",
    "bool": r"(?:True|False)",
    "str": r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"',
}
"""Type name → what such a value looks like. A str stands in quotes, as JSON, so that it says itself where it ends."""

SPECIAL = frozenset("\\.^$|?*+()[]{}-&~#/")


def choices_regex(choices: Sequence[str]) -> str:
    """Matches exactly these texts."""
    if not choices:
        raise GrammarError("choices is empty: there is nothing to choose from", param="choices")
    return "(?:" + "|".join(_escape(choice) for choice in dict.fromkeys(choices)) + ")"


def parse_dtype(dtype: str, text: str) -> int | float | bool | str:
    """The value that a text of `DTYPE_PATTERNS[dtype]` writes."""
    if re.fullmatch(DTYPE_PATTERNS[dtype], text) is None:
        raise GrammarError(f"{text!r} is not a {dtype}", param="dtype")
    if dtype == "str":
        return _unquoted(text)
    return text == "True" if dtype == "bool" else int(text) if dtype == "int" else float(text)


def _escape(text: str) -> str:
    """`re.escape` also escapes spaces and newlines, which other dialects refuse."""
    return "".join("\\" + char if char in SPECIAL else char for char in text)


def _unquoted(text: str) -> str:
    value: str = json.loads(text)
    return value
