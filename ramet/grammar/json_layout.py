"""How JSON is set: compact, or with whitespace where JSON allows it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ramet.grammar.arena import EPSILON, Arena
from ramet.grammar.pattern_expressions import whole

COMPACT = ""
ANY_WHITESPACE = r"[ \n\t\r]*"
SEPARATORS = (",", ":")


class Layout:
    """`whitespace`: a regex for what may stand between two tokens of JSON; "" is nothing. `separators`: what is written between items,
    and behind a key. `joined`: where nothing may come between, a key is one terminal with its separators, which is the least work.
    `can_count_texts`: places in the expression are what a mask is made from, so that they may know which texts were there."""

    def __init__(self, arena: Arena, whitespace: str = COMPACT, separators: tuple[str, str] = SEPARATORS, joined: bool = True) -> None:
        blank = whole(arena, whitespace, "python") if whitespace else EPSILON
        something = arena.conj((blank, arena.rep(arena.word(((1 << 256) - 1,)), 1))) if blank != EPSILON else EPSILON
        self.blank = EPSILON if blank == EPSILON else arena.optional(arena.lexeme(something))
        self._item_separator, self._key_separator = separators
        self._joined = joined and blank == EPSILON
        self.can_count_texts = joined

    def mark(self, arena: Arena, text: str) -> int:
        return arena.lexeme(arena.text(text))

    def comma(self, arena: Arena) -> int:
        return arena.seq(self.blank, self.mark(arena, self._item_separator), self.blank)

    def enclosed(self, arena: Arena, left: str, body: int, right: str) -> int:
        return arena.seq(self.mark(arena, left), self.blank, body, self.blank, self.mark(arena, right))

    def quoted(self, arena: Arena, body: int) -> int:
        return arena.lexeme(arena.seq(arena.text('"'), body, arena.text('"')))

    def key(self, arena: Arena, name: str, after: bool) -> int:
        """A declared name up to where its value begins; `after`: another property comes before it."""
        return self._key(arena, arena.alt(self.spellings(arena, json.dumps(name, ensure_ascii=False))), after)

    def free_key(self, arena: Arena, body: int, after: bool) -> int:
        return self._key(arena, arena.seq(arena.text('"'), body, arena.text('"')), after)

    def member(self, arena: Arena, value: int) -> int:
        """What follows a name."""
        return arena.seq(self.blank, self.mark(arena, self._key_separator), self.blank, value)

    def _key(self, arena: Arena, quoted: int, after: bool) -> int:
        if self._joined:
            return arena.lexeme(arena.seq(arena.text(self._item_separator if after else ""), quoted, arena.text(self._key_separator)))
        comma = self.comma(arena) if after else EPSILON
        return arena.seq(comma, arena.lexeme(quoted), self.blank, self.mark(arena, self._key_separator), self.blank)

    def spellings(self, arena: Arena, text: str) -> Iterable[int]:
        """JSON text as it is, and in ASCII, as some writers have it."""
        if text.isascii():
            return (arena.text(text),)
        ascii_only = "".join(char if ord(char) < 128 else json.dumps(char)[1:-1] for char in text)
        return dict.fromkeys((arena.text(text), arena.text(ascii_only)))
