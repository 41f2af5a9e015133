"""Given values as expressions: of enum and const."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ramet.grammar.arena import Arena
from ramet.grammar.json_layout import Layout
from ramet.grammar.number_automaton import literal_number
from ramet.grammar.schema_branches import text_of


def values_expression(arena: Arena, layout: Layout, texts: Iterable[str]) -> int:
    """One of these JSON texts. Strings and words are one terminal together; the rest is set piece by piece, as other values are."""
    simple = [text for text in texts if text[0] in '"ntf']
    words = arena.lexeme(arena.alt(node for text in simple for node in layout.spellings(arena, text)))
    return arena.alt((words, *(_value(arena, layout, json.loads(text)) for text in texts if text[0] not in '"ntf')))


def _value(arena: Arena, layout: Layout, value: Any) -> int:
    if isinstance(value, dict):
        members = [
            arena.seq(layout.key(arena, name, index > 0), _value(arena, layout, item)) for index, (name, item) in enumerate(value.items())
        ]
        return layout.enclosed(arena, "{", arena.seq(*members), "}")
    if isinstance(value, list):
        rest = [arena.seq(layout.comma(arena), _value(arena, layout, item)) for item in value[1:]]
        return layout.enclosed(arena, "[", arena.seq(*(_value(arena, layout, item) for item in value[:1]), *rest), "]")
    text = text_of(value)
    return values_expression(arena, layout, [text]) if text[0] in '"ntf' else literal_number(arena, text)
