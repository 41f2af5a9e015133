"""The members of an object, in order: each at most once, some optional, then undeclared ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ramet.grammar.arena import EPSILON, NONE, UNBOUNDED, Arena
from ramet.grammar.distinct_series import Series, series_expression
from ramet.grammar.json_layout import Layout
from ramet.grammar.schema_branches import Objects
from ramet.grammar.schema_document import refuse

MAX_COUNTED = 4000
MAX_COUNTED_NAMES = 120


Cells = tuple[tuple[int, int], ...]
"""Undeclared properties: (expression of names, expression of values)."""


class Extra(NamedTuple):
    """Undeclared properties that may be there, and those of which one must be. `must_differ`: so many are needed that no name may come
    twice."""

    cells: Cells | None
    last: Cells | None = None
    must_differ: bool = False


Pair = tuple[str, int, bool]
"""Name, expression of the value, required."""


def members(arena: Arena, layout: Layout, pairs: Sequence[Pair], extra: Extra, branch: Objects) -> int:
    """An object with `branch.low` to `branch.high` members."""
    low, high = branch.low, branch.high
    num_last = extra.last is not None
    num_required = sum(required for _, _, required in pairs) + num_last
    is_free = low <= num_required and (high is None or (extra.cells is None and high >= len(pairs) + num_last))
    body = _Spans(arena, layout, pairs, extra).expression() if is_free else _Counted(arena, layout, pairs, extra, branch).expression()
    return layout.enclosed(arena, "{", body, "}")


class _Written:
    """Members as expressions: first in the object, or after another."""

    def __init__(self, arena: Arena, layout: Layout, pairs: Sequence[Pair], extra: Extra) -> None:
        self.arena = arena
        self.layout = layout
        self.pairs = pairs
        self.extra = extra

    def pair(self, index: int, after: bool) -> int:
        name, value, _ = self.pairs[index]
        return self.arena.seq(self.layout.key(self.arena, name, after), value)

    def free(self, after: bool) -> int:
        return self._undeclared(self.extra.cells, after)

    def last(self, after: bool) -> int:
        return self._undeclared(self.extra.last, after)

    def _undeclared(self, cells: Cells | None, after: bool) -> int:
        layout, arena = self.layout, self.arena
        return arena.alt(arena.seq(layout.free_key(arena, names, after), value) for names, value in cells or ())


class _Spans(_Written):
    """Without counting. Spans are halved, so that rules nest no deeper than the logarithm of their number."""

    def expression(self) -> int:
        size = len(self.pairs)
        return self.arena.alt((self._first(0, size + 1), EPSILON if self._skippable(0, size + 1) else NONE))

    def _skippable(self, start: int, stop: int) -> bool:
        is_last_required = stop > len(self.pairs) and self.extra.last is not None
        return not is_last_required and not any(required for _, _, required in self.pairs[start:stop])

    def _first(self, start: int, stop: int) -> int:
        """At least one member, the first of the object among them. The place after the last pair is that of the undeclared."""
        if stop - start == 1:
            if start == len(self.pairs):
                found = self.arena.seq(self.free(False), self._after(start, stop))
                return self.arena.alt((found, self.last(False)))
            return self.pair(start, False)
        middle = (start + stop) // 2
        found = self.arena.seq(self._first(start, middle), self._after(middle, stop))
        if self._skippable(start, middle):
            found = self.arena.alt((found, self._first(middle, stop)))
        return self.arena.define(self.arena.new_rule(), found)

    def _after(self, start: int, stop: int) -> int:
        key = (start, stop)
        if key not in self._known:
            self._known[key] = self._make_after(start, stop)
        return self._known[key]

    def _make_after(self, start: int, stop: int) -> int:
        if stop - start > 1:
            middle = (start + stop) // 2
            both = self.arena.seq(self._after(start, middle), self._after(middle, stop))
            return self.arena.define(self.arena.new_rule(), both)
        if start == len(self.pairs):
            free = self.arena.rep(self.free(True))
            return free if self.extra.last is None else self.arena.seq(free, self.last(True))
        return self.pair(start, True) if self.pairs[start][2] else self.arena.optional(self.pair(start, True))

    def __init__(self, arena: Arena, layout: Layout, pairs: Sequence[Pair], extra: Extra) -> None:
        super().__init__(arena, layout, pairs, extra)
        self._known: dict[tuple[int, int], int] = {}


class _Counted(_Written):
    """A rule for each (next pair, members so far)."""

    def __init__(self, arena: Arena, layout: Layout, pairs: Sequence[Pair], extra: Extra, branch: Objects) -> None:
        super().__init__(arena, layout, pairs, extra)
        self._low, self._high, self._counted_at = branch.low, branch.high, branch.counted_at
        self._cap = max(branch.low, 1) if branch.high is None else branch.high
        if len(pairs) > MAX_COUNTED_NAMES or len(pairs) * min(self._cap, len(pairs)) > MAX_COUNTED or self._cap > MAX_COUNTED:
            what = f"counting properties up to {self._cap} over {len(pairs)} names is too much (minProperties, maxProperties)"
            refuse(what, branch.counted_at)
        self._known: dict[tuple[int, int], int] = {}

    def expression(self) -> int:
        return self._from(0, 0)

    def _from(self, index: int, count: int) -> int:
        key = (index, count)
        if key not in self._known:
            self._known[key] = self.arena.new_rule()
            self.arena.define(self._known[key], self.arena.alt(self._choices(index, count)))
        return self._known[key]

    def _choices(self, index: int, count: int) -> list[int]:
        full = self._high is not None and count >= self._high
        following = min(count + 1, self._cap)
        if index == len(self.pairs):
            end = EPSILON if count >= self._low and self.extra.last is None else NONE
            if self.extra.must_differ:
                return [end, NONE if full else self._different(count)]
            last = NONE if full or count + 1 < self._low else self.last(count > 0)
            more = NONE if full or self.extra.cells is None else self.arena.seq(self.free(count > 0), self._from(index, following))
            return [end, last, more]
        taken = NONE if full else self.arena.seq(self.pair(index, count > 0), self._from(index + 1, following))
        return [taken, NONE if self.pairs[index][2] else self._from(index + 1, count)]

    def _different(self, count: int) -> int:
        """Undeclared properties up to the end, with names of their own."""
        arena, layout = self.arena, self.layout
        quote, cells = arena.text('"'), self.extra.cells or ()
        options = tuple((arena.seq(quote, names, quote), layout.member(arena, value)) for names, value in cells)
        low, high = max(self._low - count, 1), UNBOUNDED if self._high is None else self._high - count
        rest = arena.rep(self.free(True), low - 1, high if high == UNBOUNDED else high - 1)
        plain = arena.seq(self.free(count > 0), rest)
        where = self._counted_at + "/minProperties"
        return series_expression(arena, Series(plain, options, layout.comma(arena), layout.blank, where, low, high, is_led=count > 0))
