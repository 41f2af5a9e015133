"""The normal form of a schema → rules. Properties come in the order of their declaration; undeclared ones follow them."""

from __future__ import annotations

import json
from decimal import localcontext

from ramet.errors import GrammarError
from ramet.grammar.arena import NONE, Arena
from ramet.grammar.array_rules import array_expression
from ramet.grammar.distinct_series import MAX_DISTINCT, nested_series
from ramet.grammar.json_layout import Layout
from ramet.grammar.json_source import MAX_DIGITS
from ramet.grammar.json_strings import conjunction, literal, none_of, string_body
from ramet.grammar.json_values import values_expression
from ramet.grammar.magnitude_automaton import NumberSet
from ramet.grammar.number_automaton import number_expression
from ramet.grammar.object_rules import Cells, Extra, members
from ramet.grammar.pattern_expressions import anything, search
from ramet.grammar.schema_branches import ANYTHING, Arrays, Branch, Goal, Numbers, Objects, Scope, Some, Strings, Values, whole_bounds
from ramet.grammar.schema_document import Document, refuse
from ramet.grammar.schema_expansion import Expansion

MAX_CELLS = 32
MAX_RULES = 50_000


def lower_schema(arena: Arena, layout: Layout, schema: object) -> int:
    """The expression of all texts that `schema` allows. Raises `GrammarError` with the JSON pointer of what cannot be enforced."""
    document = Document(schema)
    root = document.add("", schema)
    with localcontext() as context:
        context.prec = MAX_DIGITS + 1
        return _Lowering(arena, layout, Expansion(document)).lower(frozenset({root}))


class _Lowering:
    def __init__(self, arena: Arena, layout: Layout, expansion: Expansion) -> None:
        self._arena = arena
        self._layout = layout
        self._expansion = expansion
        self._refs: dict[Goal, int] = {}
        self._queue: list[Goal] = []

    def lower(self, goal: Goal) -> int:
        start = self._ref(goal)
        while self._queue:
            following = self._queue.pop()
            if len(self._arena.rules) > MAX_RULES:
                refuse(f"the schema needs more than {MAX_RULES} rules", min(following, default=""))
            self._arena.define(self._refs[following], self._rule(following))
        for series in nested_series(self._arena):
            refuse("cannot be enforced where items hold the same list again", series.where)
        return start

    def _rule(self, goal: Goal) -> int:
        try:
            return self._arena.alt(map(self._branch, self._expansion.branches(goal)))
        except GrammarError as error:
            if error.where is not None:
                raise
            refuse(error.message, min(goal, default=""))

    def _ref(self, goal: Goal) -> int:
        if goal not in self._refs:
            self._refs[goal] = self._arena.new_rule()
            self._queue.append(goal)
        return self._refs[goal]

    def _branch(self, branch: Branch) -> int:
        arena = self._arena
        match branch:
            case Values():
                return values_expression(arena, self._layout, branch.texts)
            case Numbers():
                return number_expression(arena, NumberSet(branch.integer, *whole_bounds(branch), branch.step, branch.avoided))
            case Strings():
                return self._layout.quoted(arena, string_body(arena, branch))
            case Arrays():
                return array_expression(arena, self._layout, branch, self._expansion, self._ref)
            case Objects():
                return arena.alt(self._objects(*one) for one in self._expansion.settled(branch))

    def _objects(self, branch: Objects, some: Some | None) -> int:
        """`some`: an undeclared property that must be there. It comes last, since of two with the same name readers take the last."""
        allowed = [name for name in branch.names if not self._expansion.is_forbidden(branch, name)]
        extra, last = self._extra(branch, None), None if some is None else self._extra(branch, some)
        if not branch.required <= set(allowed) or (some is not None and last is None):
            return NONE
        must_differ = extra is not None and branch.low > len(branch.required) + 1
        if must_differ and not (last is None and self._layout.can_count_texts and branch.low <= MAX_DISTINCT):
            what = "cannot be enforced over names that are not declared"
            reason = f"over {MAX_DISTINCT} of them" if branch.low > MAX_DISTINCT else "beside one that must be there, or in an ebnf"
            refuse(f"{what}: {reason}", branch.counted_at + "/minProperties")
        pairs = [(name, self._ref(self._expansion.goal_of(branch, name)), name in branch.required) for name in allowed]
        return members(self._arena, self._layout, pairs, Extra(extra, last, must_differ), branch)

    def _extra(self, branch: Objects, some: Some | None) -> Cells | None:
        """Undeclared properties: for each set of patterns that a name may match, the names and their value. With `some`, only those that
        are what it asks for."""
        asked = frozenset[str]() if some is None else some.unmatched | ({some.matched} if some.matched is not None else set())
        patterns = sorted({pattern for scope in branch.scopes for pattern, _ in scope.patterns} | asked)
        cells = []
        for matched in self._matchings(branch, patterns, some):
            goal = frozenset[str]().union(*(_goal(scope, matched) for scope in branch.scopes))
            if some is not None:
                if some.matched not in (None, *matched) or some.unmatched & matched:
                    continue
                goal |= some.value
            if not self._expansion.is_impossible(goal):
                cells.append((self._cell(self._arena, branch, patterns, matched, some), self._ref(goal)))
        return tuple(cells) or None

    def _matchings(self, branch: Objects, patterns: list[str], some: Some | None) -> list[frozenset[str]]:
        """The sets of patterns that some undeclared name matches all of, and none of the others."""
        found, strings = [frozenset[str]()], self._expansion.strings
        for index, pattern in enumerate(patterns, 1):
            tried = [matched | chosen for matched in found for chosen in (frozenset[str]((pattern,)), frozenset[str]())]
            found = [
                matched for matched in tried if strings.is_possible(self._cell(strings.arena, branch, patterns[:index], matched, some))
            ]
            if len(found) > MAX_CELLS:
                refuse(f"names may match more than {MAX_CELLS} sets of patternProperties", branch.counted_at + "/patternProperties")
        return found if patterns or strings.is_possible(self._cell(strings.arena, branch, [], frozenset(), some)) else []

    def _cell(self, arena: Arena, branch: Objects, patterns: list[str], matched: frozenset[str], some: Some | None) -> int:
        parts = [search(arena, pattern, quoted=True) for pattern in sorted(matched)]
        parts += [arena.negate(search(arena, pattern, quoted=True, wide=True)) for pattern in patterns if pattern not in matched]
        names = sorted({*branch.names, *(some.names if some is not None else ())})
        if names:
            parts.append(none_of(arena, names))
        for keys in (branch.keys, some.keys if some is not None else ANYTHING):
            if keys != ANYTHING:
                parts.append(arena.alt(_key_language(arena, key) for key in self._expansion.branches(keys)))
        return conjunction(arena, [anything(arena, True), *parts])


def _goal(scope: Scope, matched: frozenset[str]) -> Goal:
    goals = [goal for pattern, goal in scope.patterns if pattern in matched]
    return frozenset[str]().union(*goals) if goals else scope.rest


def _key_language(arena: Arena, branch: Branch) -> int:
    if isinstance(branch, Strings):
        return string_body(arena, branch)
    if isinstance(branch, Values):
        return arena.alt(literal(arena, json.loads(text)) for text in branch.texts if text.startswith('"'))
    return NONE
