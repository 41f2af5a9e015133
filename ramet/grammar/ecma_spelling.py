"""Regexes as ECMA 262 spells them → the same as Python's `re` spells them: for `pattern` in a JSON schema."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

from ramet.errors import GrammarError
from ramet.grammar.char_ranges import ALL, LAST, Ranges, complement, intersect, union

ESCAPE = re.compile(r"\\(?:[pP]\{(?P<property>[^}]*)\}|c(?P<control>[A-Za-z])|u\{(?P<code>[0-9a-fA-F]+)\}|(?P<letter>.))", re.DOTALL)
LONG_NAMES = {"Letter": "L", "Number": "N", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Mark": "M", "Other": "C"}
LONG_NAMES |= {"Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Titlecase_Letter": "Lt"}
LONG_NAMES |= {"Decimal_Number": "Nd", "Space_Separator": "Zs"}


def in_python(source: str) -> str:
    """Properties (`\\p{L}`), `\\cA`, `\\u{1F600}`, `(?<name>`, and a `-` beside a class inside of a class."""
    return "".join(_pieces(source))


def _pieces(source: str) -> Iterator[str]:
    at, in_class = 0, False
    while at < len(source):
        escape = ESCAPE.match(source, at)
        if escape is not None:
            at = escape.end()
            yield _escaped(escape, in_class)
            if in_class and escape["letter"] in tuple("dDwWsS") and source[at : at + 1] == "-" and source[at + 1 : at + 2] != "]":
                at += 1
                yield r"\-"
            continue
        if not in_class and source.startswith("(?<", at) and source[at + 3 : at + 4] not in ("=", "!"):
            at += 3
            yield "(?P<"
            continue
        in_class = source[at] != "]" if in_class else source[at] == "["
        yield source[at]
        at += 1


def _escaped(escape: re.Match[str], in_class: bool) -> str:
    if escape["property"] is not None:
        ranges = _of_property(escape["property"])
        body = _ranges_text(complement(ranges) if escape[0][1] == "P" else ranges)
        return body if in_class else f"[{body}]"
    if escape["control"] is not None:
        return f"\\x{ord(escape['control']) % 32:02x}"
    if escape["code"] is not None and int(escape["code"], 16) <= LAST:
        return f"\\U{int(escape['code'], 16):08x}"
    return escape[0]


def _of_property(text: str) -> Ranges:
    name = text.removeprefix("General_Category=").removeprefix("gc=")
    ranges = _of_category(LONG_NAMES.get(name, name))
    if not ranges:
        raise GrammarError(f"\\p{{{text}}} is not known; known are the general categories, such as \\p{{L}}, \\p{{Lu}}, \\p{{Nd}}")
    return ranges


def _of_category(name: str) -> Ranges:
    """What this Python's Unicode has in a category (Lu), or in all of a kind (L)."""
    return intersect(union((low, high) for category, low, high in _categories() if name and category.startswith(name)), ALL)


@lru_cache(maxsize=1)
def _categories() -> tuple[tuple[str, int, int], ...]:
    """Of each run of characters of one category the first and the last one."""
    runs = (list(run) for _, run in groupby(range(LAST + 1), lambda code: unicodedata.category(chr(code))))
    return tuple((unicodedata.category(chr(run[0])), run[0], run[-1]) for run in runs)


def _ranges_text(ranges: Ranges) -> str:
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)
