"""Arrays: items by place, how many, contains, and uniqueness where the values are few."""

from __future__ import annotations

from collections.abc import Callable

from ramet.grammar.arena import EPSILON, NONE, UNBOUNDED, Arena
from ramet.grammar.json_layout import Layout
from ramet.grammar.json_values import values_expression
from ramet.grammar.schema_branches import Arrays, Goal, Values
from ramet.grammar.schema_document import refuse
from ramet.grammar.schema_expansion import Expansion

MAX_UNIQUE = 8
MAX_PREFIX = 1000
MAX_STATES = 4000
Ref = Callable[[Goal], int]


def array_expression(arena: Arena, layout: Layout, branch: Arrays, expansion: Expansion, ref: Ref) -> int:
    high = _possible_length(branch, expansion)
    if high is not None and branch.low > high:
        return NONE
    if branch.contains:
        body = _Containing(arena, layout, branch, high, expansion, ref).expression()
    elif branch.unique and (high is None or high > 1):
        body = _unique(arena, layout, branch, high, expansion)
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
            return index
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


def _unique(arena: Arena, layout: Layout, branch: Arrays, high: int | None, expansion: Expansion) -> int:
    """Every order of every choice of the values that are left."""
    found = expansion.branches(branch.rest)
    if branch.prefix or any(not isinstance(option, Values) for option in found):
        refuse("can only be enforced where items are an enum of few values, or where maxItems is 1", branch.unique)
    texts = [text for option in found if isinstance(option, Values) for text in option.texts]
    if len(texts) > MAX_UNIQUE:
        refuse(f"over {len(texts)} values is too much; the limit is {MAX_UNIQUE}", branch.unique)
    rules: dict[frozenset[str], int] = {}

    def after(used: frozenset[str]) -> int:
        if used not in rules:
            comma = layout.comma(arena) if used else EPSILON
            rules[used] = arena.new_rule()
            left = [text for text in texts if text not in used] if high is None or len(used) < high else []
            options = [arena.seq(comma, values_expression(arena, layout, [text]), after(used | {text})) for text in left]
            arena.define(rules[used], arena.alt([*options, EPSILON if len(used) >= branch.low else NONE]))
        return rules[used]

    return after(frozenset())


class _Containing:
    """A rule for each (items so far, of these meant to be contained)."""

    def __init__(self, arena: Arena, layout: Layout, branch: Arrays, high: int | None, expansion: Expansion, ref: Ref) -> None:
        if branch.unique:
            refuse("beside contains cannot be enforced", branch.unique)
        if len(branch.contains) > 1:
            refuse("more than one contains cannot be enforced together", _where(branch))
        self._arena, self._comma, self._branch, self._high = arena, layout.comma(arena), branch, high
        self._wanted, self._least = branch.contains[0]
        self._cap = max(branch.low, len(branch.prefix), 1) if high is None else max(high, 1)
        if self._cap * self._least > MAX_STATES:
            refuse(f"counting up to {self._cap} items with {self._least} contained is too much", _where(branch))
        self._ref, self._expansion = ref, expansion
        self._rules: dict[tuple[int, int], int] = {}

    def expression(self) -> int:
        start = (0, 0)
        self._rules[start] = self._arena.new_rule()
        queue = [start]
        while queue:
            state = queue.pop()
            self._arena.define(self._rules[state], self._arena.alt(self._choices(*state, queue)))
        return self._rules[start]

    def _choices(self, count: int, good: int, queue: list[tuple[int, int]]) -> list[int]:
        found = [EPSILON if count >= self._branch.low and good >= self._least else NONE]
        if self._high is None or count < self._high:
            goal, comma = self._branch.item(count), self._comma if count else EPSILON
            following = min(count + 1, self._cap)
            found.append(self._arena.seq(comma, self._ref(goal), self._after((following, good), queue)))
            if good < self._least and not self._expansion.is_impossible(goal | self._wanted):
                found.append(self._arena.seq(comma, self._ref(goal | self._wanted), self._after((following, good + 1), queue)))
        return found

    def _after(self, state: tuple[int, int], queue: list[tuple[int, int]]) -> int:
        if state not in self._rules:
            self._rules[state] = self._arena.new_rule()
            queue.append(state)
        return self._rules[state]
