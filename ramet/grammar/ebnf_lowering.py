"""`ebnf` constraints: llguidance's Lark, or GBNF, in which every `%json {schema}` is lowered by our own front end.

Each schema becomes a grammar beside the one it stands in, which refers to it by name, so that what `%ignore` says there does not reach it.
Its layout is that of all JSON, unless its "x-guidance" says otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark, is_lark_syntax

from ramet.errors import GrammarError
from ramet.grammar.arena import Arena
from ramet.grammar.derivatives import Walker
from ramet.grammar.gbnf_lexemes import by_character
from ramet.grammar.json_layout import ANY_WHITESPACE, Layout
from ramet.grammar.lark_reader import Unreadable, read_lark
from ramet.grammar.lark_tokens import EMBEDDED, NotLark, Token, place_of, tokens_of
from ramet.grammar.lark_writer import write_rules
from ramet.grammar.schema_lowering import lower_schema

BAR_ON_NEXT_LINE = re.compile(r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|(?P<gap>(?:[ \t]*(?:\#[^\n]*)?\n)+[ \t]*)\|')
"""What other readers of GBNF allow, and the one used here does not: an alternative that begins with its bar on a line of its own."""
STYLE = "x-guidance"
STYLE_KEYS = {"whitespace_flexible": bool, "whitespace_pattern": str, "item_separator": str, "key_separator": str}


class LoweredEbnf(NamedTuple):
    """`text`: for llguidance. `start`: the expression in the arena; None where it is not known."""

    text: str
    start: int | None


def lower_ebnf(arena: Arena, source: str, whitespace: str) -> LoweredEbnf:
    """Raises `GrammarError` with the line, and in a schema the JSON pointer, of what cannot be enforced."""
    lark = _as_lark(source)
    try:
        tokens = tokens_of(lark)
    except NotLark as error:
        if EMBEDDED in lark:  # what stands in it must not pass by unread
            raise GrammarError("ebnf: not Lark", where=place_of(lark, error.at), param="ebnf") from error
        return LoweredEbnf(lark, None)
    schemas = [token for token in tokens if token.kind == "json"]
    bodies = {token.start: _lower_embedded(arena, lark, token, whitespace) for token in schemas}
    try:
        start: int | None = read_lark(arena, tokens, bodies)
    except Unreadable:
        start = None
    return LoweredEbnf(_composed(arena, lark, schemas, bodies) if schemas else lark, start)


def read_gbnf(arena: Arena, source: str) -> int:
    """The expression of a GBNF, each terminal a lexeme. Raises `GrammarError` where it cannot be told."""
    if is_lark_syntax(source):
        raise GrammarError("ebnf: must be GBNF (root ::= …): in Lark, texts depend on what terminals there are around them", param="ebnf")
    try:
        return read_lark(arena, tokens_of(_as_lark(source)), {}, {})
    except (NotLark, Unreadable) as error:
        raise GrammarError(f"ebnf: what it means cannot be told: {error}", param="ebnf") from error


def _as_lark(source: str) -> str:
    try:
        if is_lark_syntax(source):
            return source
        return by_character(gbnf_to_lark(BAR_ON_NEXT_LINE.sub(_bar_before_line_end, source)))
    except GbnfToLarkError as error:
        line = error.pos.text.count("\n", 0, error.pos.pos) + 1
        raise GrammarError(f"ebnf: {_first_line(str(error))}", where=f"line {line}", param="ebnf") from error
    except Exception as error:  # for a missing rule the converter raises nothing narrower
        raise GrammarError(f"ebnf: {_first_line(str(error))}", where=_place_of_rule(source, str(error)), param="ebnf") from error


def _bar_before_line_end(found: re.Match[str]) -> str:
    return found[0] if found["gap"] is None else f" |{found['gap']}"


def _place_of_rule(source: str, message: str) -> str | None:
    """Where the rule that a message is about is first mentioned."""
    name = re.search(r"Rule '([\w-]+)'", message)
    found = re.search(rf"(?<![\w-]){re.escape(name[1])}(?![\w-])", source) if name is not None else None
    return None if found is None else place_of(source, found.start())


def _lower_embedded(arena: Arena, lark: str, token: Token, whitespace: str) -> int:
    try:
        if not isinstance(token.value, dict | bool):
            raise GrammarError("json_schema: a schema is an object or true or false", where="#")
        return lower_schema(arena, _layout(arena, token.value, whitespace), token.value)
    except GrammarError as error:
        message = error.message.removesuffix(f" (at {error.where})")
        raise GrammarError(message, where=f"{_line(lark, token)}, {error.where}", param="ebnf") from error


def _layout(arena: Arena, schema: Mapping[str, Any] | bool, whitespace: str) -> Layout:
    """Keys and colons are terminals of their own: what else may stand here might begin like a key."""
    style = {} if isinstance(schema, bool) else schema.get(STYLE, {})
    if not isinstance(style, Mapping):
        raise GrammarError(f"json_schema: {STYLE} must be an object", where=f"/{STYLE}")
    for key, value in style.items():
        if not isinstance(value, STYLE_KEYS.get(key, ())):
            known = ", ".join(STYLE_KEYS)
            raise GrammarError(f"json_schema: {key!r} is not one of {known}, or has a value of another type", where=f"/{STYLE}/{key}")
    if "whitespace_flexible" in style:
        whitespace = ANY_WHITESPACE if style["whitespace_flexible"] else ""
    separators = (style.get("item_separator", ","), style.get("key_separator", ":"))
    for name, text, mark in zip(("item", "key"), separators, ",:", strict=True):
        if text.strip(" \t\r\n") != mark:
            raise GrammarError(f"json_schema: must be {mark!r} with whitespace around it", where=f"/{STYLE}/{name}_separator")
    return Layout(arena, style.get("whitespace_pattern", whitespace), separators, joined=False)


def _composed(arena: Arena, lark: str, schemas: list[Token], bodies: Mapping[int, int]) -> str:
    """Lines keep their numbers."""
    walker = Walker(arena)
    text, grammars, at, num_owed = "", [], 0, 0
    for index, token in enumerate(schemas):
        body = bodies[token.start]
        if walker.is_empty(body):
            raise GrammarError("json_schema: no text at all satisfies it", where=f"{_line(lark, token)}, #", param="ebnf")
        expression, rules = write_rules(walker, body)
        grammars.append({"name": f"json-{index}", "lark_grammar": "\n".join((f"start: {expression}", *rules))})
        text += _with_lines(lark[at : token.start], num_owed) + f"@json-{index}"
        num_owed = lark.count("\n", token.start, token.end) + (num_owed if "\n" not in lark[at : token.start] else 0)
        at = token.end
    text += _with_lines(lark[at:], num_owed)
    return json.dumps({"grammars": [{"lark_grammar": text}, *grammars]}, ensure_ascii=False)


def _with_lines(text: str, num_owed: int) -> str:
    """With as many lines more, behind its first."""
    return text.replace("\n", "\n" * (1 + num_owed), 1)


def _line(lark: str, token: Token) -> str:
    return place_of(lark, token.start).partition(",")[0]


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "refused without a reason"
