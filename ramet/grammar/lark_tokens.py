"""The Lark of `ebnf` constraints as tokens, with the JSON schemas that stand in it read out."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from ramet.errors import GrammarError
from ramet.grammar.json_source import read_json_at

TOKEN = re.compile(
    r"""(?P<blank>(?:\#|//)[^\n]*|[ \t\r]+)
    |(?P<newline>\n)
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?:\\.|[^/\\])+/[imslux]*)
    |(?P<special><[^<>\s]+>)
    |(?P<grammar>@[A-Za-z0-9_-]+)
    |(?P<statement>%[a-z]+)
    |(?P<rule>!?[_?]?[a-z][_a-z0-9-]*)
    |(?P<terminal>_?[A-Z][_A-Z0-9-]*)
    |(?P<number>[+-]?[0-9]+(?:\.[0-9]+)?)
    |(?P<mark>->|\.\.|::|[:,.(){}\[\]~|=+*?&])""",
    re.VERBOSE,
)
EMBEDDED = "%json"


class Token(NamedTuple):
    """`kind`: a group of `TOKEN`, or json, whose `value` is a schema; the values of others are their text. `start`, `end`: its place."""

    kind: str
    value: Any
    start: int
    end: int


class NotLark(Exception):
    """The text at `at` is nothing that stands in a grammar."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def tokens_of(source: str) -> list[Token]:
    """Without blanks and comments. Raises `NotLark`, or `GrammarError` for what follows %json and is no JSON."""
    found: list[Token] = []
    at = 0
    while at < len(source):
        match = TOKEN.match(source, at)
        if match is None or match.lastgroup is None:
            raise NotLark(at)
        token = Token(match.lastgroup, match[0], at, match.end())
        if token.value == EMBEDDED:
            token = _embedded(source, token)
        if token.kind != "blank":
            found.append(token)
        at = token.end
    return found


def _embedded(source: str, token: Token) -> Token:
    start = token.end + len(source[token.end :]) - len(source[token.end :].lstrip())
    try:
        schema, end = read_json_at(source, start, "json_schema")
    except GrammarError as error:
        where = f"{place_of(source, token.start).partition(',')[0]}, {error.where}"
        raise GrammarError(error.message.removesuffix(f" (at {error.where})"), where=where, param="ebnf") from error
    except json.JSONDecodeError as error:
        where = place_of(source, error.pos)
        raise GrammarError(f"ebnf: what follows {EMBEDDED} is not JSON: {error.msg}", where=where, param="ebnf") from error
    return Token("json", schema, token.start, end)


def place_of(source: str, at: int) -> str:
    line = source.count("\n", 0, at)
    return f"line {line + 1}, column {at - (source.rfind(chr(10), 0, at) + 1) + 1}"
