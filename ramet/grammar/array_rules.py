"""Arrays: items by place, how many, contains, and uniqueness."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from math import comb, prod

from ramet.grammar.arena import EPSILON, NONE, UNBOUNDED, Arena
from ramet.grammar.distinct_series import MAX_DISTINCT, Series, series_expression
from ramet.grammar.json_layout import Layout
from ramet.grammar.json_values import values_expression
from ramet.grammar.schema_branches import Arrays, Branch, Contains, Goal, Numbers, Strings, Values, opposite
from ramet.grammar.schema_document import refuse
from ramet.grammar.schema_expansion import Expansion

MAX_UNIQUE = 12_000
"""Ways on from all sets of values that may have been taken."""
MAX_PREFIX = 1000
MAX_STATES = 4000
Ref = Callable[[Goal], int]
Counts = tuple[int, ...]


def array_expression(arena: Arena, layout: Layout, branch: Arrays, expansion: Expansion, ref: Ref) -> int:
    high = _possible_length(branch, expansion)
    if high is not None and branch.low > high:
        return NONE
    if branch.contains:
        body = _Containing(arena, layout, branch, high, expansion, ref).expression()
    elif branch.unique and (high is None or high > 1):
        body = _unique(arena, layout, branch, high, expansion, ref)
    else:
        body = _plain(arena, layout, branch, high, ref)
    return layout.enclosed(arena, "[", body, "]")


def _where(branch: Arrays) -> str:
    return min((pointer.rpartition("/")[0] for goal in (branch.rest, *branch.prefix) for pointer in goal), default="")


def _possible_length(branch: Arrays, expansion: Expansion) -> int | None:
    """`maxItems`, less what can never be filled."""
    if len(branch.prefix) > MAX_PREFIX:
        refuse(f"has more than {MAX_PREFIX} entries", _where(branch))
    for index in range(len(branch.prefix) + 1):
        if (branch.high is None or index < branch.high) and expansion.is_impossible(branch.item(index)):
            return index  # nothing can stand there
    return branch.high


def _plain(arena: Arena, layout: Layout, branch: Arrays, high: int | None, ref: Ref) -> int:
    prefix = len(branch.prefix) if high is None else min(len(branch.prefix), high)
    comma = layout.comma(arena)
    item = ref(branch.rest) if high is None or high > prefix else NONE
    least, most = max(branch.low - prefix, 0), UNBOUNDED if high is None else high - prefix
    if prefix == 0:
        if most == 0:
            return EPSILON
        some = arena.seq(item, arena.rep(arena.seq(comma, item), max(least - 1, 0), most if most == UNBOUNDED else most - 1))
        return some if branch.low else arena.optional(some)
    tail = arena.rep(arena.seq(comma, item), least, most)
    for index in reversed(range(prefix)):
        found = arena.seq(comma if index else EPSILON, ref(branch.prefix[index]), tail)
        tail = arena.define(arena.new_rule(), found if index < branch.low else arena.optional(found))
    return tail


def _unique(arena: Arena, layout: Layout, branch: Arrays, high: int | None, expansion: Expansion, ref: Ref) -> int:
    """Few values have rules for every order of every choice of them; else the places of the series know what was there."""
    num_places = len(branch.prefix) + 1 if high is None else min(len(branch.prefix) + 1, high)
    places = [expansion.finite(branch.item(index)) for index in range(num_places)]
    known = [texts for texts in places if texts is not None]
    num_values = len({text for texts in known for text in texts})
    most = num_values if high is None else min(high, num_values)
    if len(known) == len(places) and sum(comb(num_values, size) * (num_values - size) for size in range(most)) <= MAX_UNIQUE:
        return _choices_in_order(arena, layout, branch, known, most)
    if branch.prefix:
        refuse("beside prefixItems can only be enforced where items are few given values (enum, const, small ranges)", branch.unique)
    if not layout.can_count_texts:
        refuse("can only be enforced within an ebnf where items are few given values (enum, const, small ranges)", branch.unique)
    if branch.low > MAX_DISTINCT:
        refuse(f"can only be enforced for up to {MAX_DISTINCT} items that must be there", branch.unique)
    plain = _plain(arena, layout, replace(branch, low=max(branch.low, 1)), high, ref)
    is_tight = all(_is_tight(item) for item in expansion.branches(branch.rest))
    least, most = max(branch.low, 1), UNBOUNDED if high is None else high
    item, comma = ((ref(branch.rest), EPSILON),), layout.comma(arena)
    series = Series(plain, item, comma, layout.blank, branch.unique, least, most, is_tight=is_tight)
    some = series_expression(arena, series)
    return some if branch.low else arena.optional(some)


def _is_tight(item: Branch) -> bool:
    """Of such values it is known in which texts they are written."""
    return isinstance(item, Strings) or (isinstance(item, Numbers) and item.integer) or (isinstance(item, Values) and _are_simple(item))


def _are_simple(values: Values) -> bool:
    return all(text[0] in '"tfn' for text in values.texts)


def _choices_in_order(arena: Arena, layout: Layout, branch: Arrays, known: list[tuple[str, ...]], most: int) -> int:
    """Every order of every choice of the values that are left, at each place among those that are allowed there."""
    rules: dict[frozenset[str], int] = {}

    def after(used: frozenset[str]) -> int:
        if used not in rules:
            comma = layout.comma(arena) if used else EPSILON
            rules[used] = arena.new_rule()
            allowed = known[min(len(used), len(known) - 1)] if len(used) < most else ()
            left = [text for text in allowed if text not in used]
            options = [arena.seq(comma, values_expression(arena, layout, [text]), after(used | {text})) for text in left]
            arena.define(rules[used], arena.alt([*options, EPSILON if len(used) >= branch.low else NONE]))
        return rules[used]

    return after(frozenset())


class _Containing:
    """A rule for each (items so far, of these claimed to meet each `contains`). Where there may only be so many, the others must not."""

    def __init__(self, arena: Arena, layout: Layout, branch: Arrays, high: int | None, expansion: Expansion, ref: Ref) -> None:
        if branch.unique:
            refuse("beside contains cannot be enforced", branch.unique)
        self._arena, self._comma, self._branch, self._high = arena, layout.comma(arena), branch, high
        least = max(branch.low, len(branch.prefix), *(wanted.start for wanted in branch.contains), 1)
        self._cap = least if high is None else max(high, 1)
        self._goals = [_goals_of(wanted) for wanted in branch.contains]
        counts = [1 + (wanted.least if wanted.most is None else wanted.most) for wanted in branch.contains]
        if self._cap * prod(counts) > MAX_STATES:
            refuse(f"counting up to {self._cap} items with {counts[0] - 1} contained is too much", branch.contains[0].pointer)
        self._ref, self._expansion = ref, expansion
        self._rules: dict[tuple[int, Counts], int] = {}

    def expression(self) -> int:
        start = (0, (0,) * len(self._branch.contains))
        self._rules[start] = self._arena.new_rule()
        queue = [start]
        while queue:
            state = queue.pop()
            self._arena.define(self._rules[state], self._arena.alt(self._choices(*state, queue)))
        return self._rules[start]

    def _choices(self, count: int, counts: Counts, queue: list[tuple[int, Counts]]) -> Iterator[int]:
        enough = all(found >= wanted.least for found, wanted in zip(counts, self._branch.contains, strict=True))
        if count >= self._branch.low and enough:
            yield EPSILON
        if self._high is not None and count >= self._high:
            return
        comma, following = self._comma if count else EPSILON, min(count + 1, self._cap)
        for claims in product((False, True), repeat=len(counts)):
            goal = self._claimed(count, counts, claims)
            if goal is not None and not self._expansion.is_impossible(goal):
                after = tuple(found + claim for found, claim in zip(counts, claims, strict=True))
                yield self._arena.seq(comma, self._ref(goal), self._after((following, after), queue))

    def _claimed(self, count: int, counts: Counts, claims: tuple[bool, ...]) -> Goal | None:
        """What the item must satisfy; None where there is no such claim to make."""
        goal = self._branch.item(count)
        for wanted, found, is_claimed, (met, unmet) in zip(self._branch.contains, counts, claims, self._goals, strict=True):
            limit = wanted.least if wanted.most is None else wanted.most
            if is_claimed and (count < wanted.start or found >= limit):
                return None
            if is_claimed or (wanted.most is not None and count >= wanted.start):
                goal |= met if is_claimed else unmet
        return goal

    def _after(self, state: tuple[int, Counts], queue: list[tuple[int, Counts]]) -> int:
        if state not in self._rules:
            self._rules[state] = self._arena.new_rule()
            queue.append(state)
        return self._rules[state]


def _goals_of(wanted: Contains) -> tuple[Goal, Goal]:
    """Of an item that meets it, and of one that does not."""
    return frozenset({wanted.pointer}), frozenset({opposite(wanted.pointer)})
