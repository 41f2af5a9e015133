"""Series whose parts must differ as JSON values: items of an array, names of an object. Which texts were there is part of the place.

A place is a node: `fresh`, before an item, or `within` one. A step leaves open which text an item had that has just ended, and where one
began that has just begun; `walk` tells it, byte by byte, for one text. Where many texts are walked at once, as all tokens are, places stay
open: an item that has ended since is not ruled out further on, and `is_uncertain` says that the walk must be repeated alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ramet.grammar.arena import EPSILON, INFINITE, NONE, UNBOUNDED, Arena

if TYPE_CHECKING:
    from ramet.grammar.derivatives import Walker

OPEN = -1
"""As where an item begins: at the byte just walked."""
MAX_DISTINCT = 64
"""Items that must be there: how long they are takes a search for each."""
SERIES = frozenset({"fresh", "within"})
JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9.]+(?:[eE][+-]?[0-9]+)?|[a-z]+|[^\s"]')


class Series(NamedTuple):
    """`plain`: the series as it were if nothing had to differ. `options`: (what must differ, what follows it). `where`: the pointer of what
    asks for it. `is_led`: a comma comes first. `is_tight`: values are written in no other texts than those that `equal_texts` knows."""

    plain: int
    options: tuple[tuple[int, int], ...]
    comma: int
    blank: int
    where: str
    low: int
    high: int = UNBOUNDED
    is_led: bool = False
    is_tight: bool = True


class _Fresh(NamedTuple):
    """`size`: items so far; -1, the comma is still to come. `used`: their texts; of one that is still to be told, where it begins."""

    series: Series
    size: int
    used: tuple[bytes | int, ...]


class _Within(NamedTuple):
    series: Series
    size: int
    used: tuple[bytes | int, ...]
    rest: int
    tail: int
    start: int


def series_expression(arena: Arena, series: Series) -> int:
    return _fresh(arena, _Fresh(series, -1 if series.is_led else 0, ()))


def nested_series(arena: Arena) -> Iterator[Series]:
    """Those whose items may hold the same series again: of them no search for an item that is not used comes to an end."""
    for node, (op, of) in enumerate(arena.nodes):
        if op == "fresh":
            series = Series._make(of[0])
            if node in arena.reachable(head for head, _ in series.options):
                yield series


class DistinctSeries:
    """What `Walker` does not know of such nodes. `is_needed`: there are any. `text`: what led to the place that is asked about; b"" where
    that is one of many, and an item may be known in part: what is found then about the rest is a guess."""

    def __init__(self, walker: Walker) -> None:
        self._walker = walker
        self._arena = walker.arena
        self.text = b""
        self.is_needed = any(op == "fresh" for op, _ in walker.arena.nodes)
        self._is_open = cache(self._find_open)
        self._equal = cache(lambda text, blank: equal_texts(self._arena, text, blank))

    # ── as other expressions say it ──

    def entered(self, node: int) -> int:
        """`fresh` as an alternative of places within an item."""
        arena, (series, size, used) = self._arena, self._read_fresh(node)
        if size < 0:
            return arena.seq(series.comma, _fresh(arena, _Fresh(series, 0, used)))
        found = []
        for head, tail in series.options:
            rest = self._unused(head, used, series.blank)
            found.append(_within(arena, _Within(series, size + 1, used, rest, tail, OPEN)))
        return arena.alt(found)

    def after(self, place: _Within, text: bytes | int) -> int:
        """What follows an item of this text."""
        arena, series, size = self._arena, place.series, place.size
        more = NONE
        if series.high == UNBOUNDED or size < series.high:
            more = arena.seq(series.comma, _fresh(arena, _Fresh(series, size, (*place.used, text))))
        return arena.seq(place.tail, arena.alt((more, EPSILON if size >= series.low else NONE)))

    def opened(self, node: int) -> int:
        """The same texts as an expression that does not know what was used."""
        if self._arena.nodes[node].op == "fresh":
            return self.entered(node)
        place = self._read_within(node)
        return self._arena.seq(place.rest, self.after(place, place.start))

    def ending(self, node: int) -> tuple[int, ...]:
        """What must be over for the series to end within this item."""
        place = self._read_within(node)
        return place.rest, place.tail, EPSILON if place.size >= place.series.low else NONE

    def step(self, node: int, byte: int) -> int:
        arena, walker = self._arena, self._walker
        if arena.nodes[node].op == "fresh":
            return walker.step(self.entered(node), byte)
        place = self._read_within(node)
        following = _within(arena, place._replace(rest=walker.step(place.rest, byte)))
        if not walker.nullable(place.rest):
            return following
        return arena.alt((following, walker.step(self.after(place, place.start), byte)))

    def length(self, node: int) -> int:
        """Of a shortest text; where an item's text is not told, at least so much suffices."""
        if self._arena.nodes[node].op == "within":
            item = self._read_within(node)
            return self._walker.shortest(item.rest) + self._walker.shortest(self.after(item, item.start))
        items = self._shortest_items(self._read_fresh(node))
        return INFINITE if items is None else sum(length for _, length in items)

    def witness(self, node: int) -> bytes:
        walker = self._walker
        if self._arena.nodes[node].op == "within":
            place = self._read_within(node)
            rest = walker.witness(place.rest)
            return rest + walker.witness(self.after(place, self.text[place.start :] + rest if self.text and place.start >= 0 else OPEN))
        return b"".join([item for item, _ in self._shortest_items(self._read_fresh(node)) or ()])

    def _shortest_items(self, place: _Fresh) -> list[tuple[bytes, int]] | None:
        """As many as are needed, with their commas, and their lengths; None where so many are not to be had. Of those that are open each
        may be any: the longest suffice in any case."""
        walker, series, used = self._walker, place.series, place.used
        num_needed, num_open = max(series.low - max(place.size, 0), 1), sum(isinstance(text, int) for text in used)
        found: list[tuple[bytes, int]] = []
        for _ in range(num_needed + num_open):
            options = [(self._unused(head, used, series.blank), tail) for head, tail in series.options]
            lengths = [walker.shortest(head) + walker.shortest(tail) for head, tail in options]
            head, tail = options[lengths.index(min(lengths))]
            if min(lengths) >= INFINITE:
                return None
            used = (*used, walker.witness(head))
            found.append((walker.witness(seq := self._arena.seq(head, tail)), walker.shortest(seq)))
        found = sorted(found, key=lambda item: item[1])[num_open:]
        comma = walker.witness(series.comma), walker.shortest(series.comma)
        joined = [part for item in found for part in (comma, item)]
        return joined if place.size < 0 else joined[1:]

    def _unused(self, head: int, used: tuple[bytes | int, ...], blank: int) -> int:
        known = [self._equal(text, blank) for text in used if isinstance(text, bytes)]
        return self._arena.conj((head, self._arena.negate(self._arena.alt(known)))) if known else head

    # ── one text ──

    def told(self, node: int, text: bytes) -> int:
        """A place that was come to by the last byte of `text`, which follows `self.text`."""
        return self._settled(node, self.text + text) if self.is_needed else node

    def walk(self, node: int, before: bytes, text: bytes) -> int:
        """`text` behind `before`, with all that is open told."""
        for end, byte in enumerate(text, 1):
            self.text = before + text[:end]
            node = self._settled(self._walker.step(node, byte), self.text)
        return node

    def _settled(self, node: int, text: bytes) -> int:
        if not self._is_open(node):
            return node
        arena, (op, of) = self._arena, self._arena.nodes[node]
        if op == "fresh":
            place = self._read_fresh(node)
            return _fresh(arena, place._replace(used=_told(place.used, text)))
        if op == "within":
            return self._settled_item(self._read_within(node), text)
        parts = [self._settled(part, text) for part in of]
        return arena.seq(*parts) if op == "seq" else arena.alt(parts) if op == "alt" else arena.conj(parts)

    def _settled_item(self, place: _Within, text: bytes) -> int:
        start = len(text) - 1 if place.start == OPEN else place.start
        used, rest = _told(place.used, text), self._settled(place.rest, text)
        if self._may_repeat(place) and _value(text[start:]) in map(_value, used):
            rest = self._arena.conj((rest, self._arena.rep(self._arena.word(((1 << 256) - 1,)), 1)))  # it must go on
        return _within(self._arena, place._replace(used=used, rest=rest, start=start))

    def _may_repeat(self, place: _Within) -> bool:
        return bool(place.used) and not place.series.is_tight and self._walker.nullable(place.rest)

    def is_uncertain(self, node: int) -> bool:
        """What is open, but for an item that has only begun."""
        op, of = self._arena.nodes[node]
        if not self._is_open(node):
            return False
        if op == "fresh":
            return True
        if op == "within":
            place = self._read_within(node)
            return _is_any_open(place.used) or self._may_repeat(place) or self.is_uncertain(place.rest)
        return any(map(self.is_uncertain, of))

    def _find_open(self, node: int) -> bool:
        op, of = self._arena.nodes[node]
        if op == "fresh":
            return _is_any_open(self._read_fresh(node).used)
        if op == "within":
            place = self._read_within(node)
            return place.start == OPEN or _is_any_open(place.used) or self._may_repeat(place) or self._is_open(place.rest)
        return op in ("seq", "alt", "conj") and any(map(self._is_open, of))

    def _read_fresh(self, node: int) -> _Fresh:
        series, size, used = self._arena.nodes[node].of
        return _Fresh(Series._make(series), size, used)

    def _read_within(self, node: int) -> _Within:
        series, *others = self._arena.nodes[node].of
        return _Within(Series._make(series), *others)


def _fresh(arena: Arena, place: _Fresh) -> int:
    return arena.series("fresh", (tuple(place.series), *place[1:]))


def _within(arena: Arena, place: _Within) -> int:
    return NONE if place.rest == NONE else arena.series("within", (tuple(place.series), *place[1:]))


def _is_any_open(used: tuple[bytes | int, ...]) -> bool:
    return any(isinstance(text, int) for text in used)


def _told(used: tuple[bytes | int, ...], text: bytes) -> tuple[bytes | int, ...]:
    """Items that were open ended before the last byte of `text`."""
    return tuple(text[item:-1] if isinstance(item, int) else item for item in used)


def equal_texts(arena: Arena, text: bytes, blank: int) -> int:
    """JSON texts of the same value, properties in the same order and numbers without exponent."""
    parts = []
    for token in JSON_TOKEN.findall(text):
        is_number = token[0] in b"-0123456789"
        parts += [
            _equal_string(arena, token) if token[:1] == b'"' else _equal_number(arena, token) if is_number else arena.text(token),
            blank,
        ]
    return arena.seq(*parts[:-1])


def _equal_string(arena: Arena, token: bytes) -> int:
    try:
        chars = [arena.chars(((ord(char), ord(char)),), True) for char in json.loads(token)]
    except ValueError:  # known in part
        return arena.text(token)
    return arena.seq(arena.text('"'), *chars, arena.text('"'))


def _equal_number(arena: Arena, token: bytes) -> int:
    if b"e" in token.lower():
        return arena.text(token)
    whole, _, fraction = token.partition(b".")
    fraction, zeros = fraction.rstrip(b"0"), arena.rep(arena.text("0"))
    if fraction:
        return arena.seq(arena.text(whole + b"." + fraction), zeros)
    sign = arena.optional(arena.text("-")) if whole in (b"0", b"-0") else EPSILON
    digits = arena.text(whole.removeprefix(b"-") if sign != EPSILON else whole)
    return arena.seq(sign, digits, arena.optional(arena.seq(arena.text(".0"), zeros)))


def _value(text: bytes | int) -> Hashable:
    try:
        return _comparable(json.loads(text)) if isinstance(text, bytes) else object()
    except ValueError:  # known in part
        return object()


def _comparable(value: Any) -> Hashable:
    """Equal where JSON values are: 1 and 1.0, but not 1 and true."""
    if isinstance(value, dict):
        return frozenset((name, _comparable(item)) for name, item in value.items())
    if isinstance(value, list):
        return "list", *map(_comparable, value)
    return (type(value).__name__, value) if value is None or isinstance(value, bool) else value
