"""How many tokens an answer can have, from what constrains it. A token is at least one byte, so bounds are counted in bytes of UTF-8."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# The standard parser knows the language's exact syntax; its module has been private by name since 3.11.
from re import _constants as c  # isort: skip
from re import _parser as parser  # isort: skip

LONGEST_WIDTH = 1 << 20
"""What is longer counts as unbounded."""
_WIDEST = 4  # bytes of one character
_EMPTY = (c.AT, c.ASSERT, c.ASSERT_NOT)


def longest_answer(arguments: Mapping[str, Any]) -> int | None:
    """Of a gen with these arguments, as far as they are known; None where there is no bound."""
    bounds = [arguments.get("max_tokens"), 5 if arguments.get("dtype") == "bool" else None, _of_regex(arguments.get("regex"))]
    return min((bound for bound in bounds if isinstance(bound, int) and not isinstance(bound, bool)), default=None)


def longest_choice(choices: Any) -> int | None:
    return max((len(str(choice).encode()) for choice in choices), default=None) if isinstance(choices, list | tuple) else None


def _of_regex(pattern: Any) -> int | None:
    if not isinstance(pattern, str):
        return None
    try:
        width = _sequence(parser.parse(pattern))
    except (re.error, RecursionError, OverflowError):
        return None  # whoever compiles it says what is wrong
    return None if width is None or width > LONGEST_WIDTH else width


def _sequence(items: Any) -> int | None:
    """None: unbounded, or not known."""
    total = 0
    for code, argument in items:
        width = _width(code, argument)
        if width is None:
            return None
        total += width
    return total


def _width(code: Any, argument: Any) -> int | None:
    if code is c.LITERAL:
        return len(chr(argument).encode("utf-8", "surrogatepass"))
    if code in (c.ANY, c.NOT_LITERAL):
        return _WIDEST
    if code is c.IN:
        return _set_width(argument)
    if code in (c.MAX_REPEAT, c.MIN_REPEAT, c.POSSESSIVE_REPEAT):
        return _repeated(argument[1], _sequence(argument[2]))
    if code is c.SUBPATTERN:
        return _sequence(argument[-1])
    if code is c.ATOMIC_GROUP:
        return _sequence(argument)
    if code is c.BRANCH:
        widths = [_sequence(branch) for branch in argument[1]]
        return None if None in widths else max(width for width in widths if width is not None)
    return 0 if code in _EMPTY else None


def _repeated(most: Any, width: int | None) -> int | None:
    if width is None:
        return None
    return 0 if width == 0 else None if most is c.MAXREPEAT else int(most) * width


def _set_width(members: Sequence[tuple[Any, Any]]) -> int:
    """Of the widest character of a set."""
    widest = 1
    for code, argument in members:
        if code is c.LITERAL:
            widest = max(widest, len(chr(argument).encode("utf-8", "surrogatepass")))
        elif code is c.RANGE:
            widest = max(widest, len(chr(argument[1]).encode("utf-8", "surrogatepass")))
        else:  # a negation, or a category such as letters
            return _WIDEST
    return widest
