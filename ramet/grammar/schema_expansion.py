"""A JSON schema → its normal form: references followed, allOf intersected, anyOf united, oneOf shown to be disjoint, not and if rewritten.

What cannot be brought into that form is refused with its JSON pointer; nothing is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ramet.grammar.json_strings import StringFacts
from ramet.grammar.schema_branches import (
    EVERYTHING,
    Arrays,
    Bound,
    Branch,
    Goal,
    Numbers,
    Objects,
    Strings,
    Values,
    conjoin,
    same,
    text_of,
    whole_bounds,
)
from ramet.grammar.schema_document import Document, refuse
from ramet.grammar.schema_keywords import typed_branches
from ramet.grammar.schema_rewriting import alternatives_of_condition, complement, dependency_alternatives

MAX_BRANCHES = 2000
MAX_NESTING = 60
Branches = tuple[Branch, ...]


class Expansion:
    """Everything about one schema document; remembers what it found."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.strings = StringFacts()
        self._expanded: dict[str, Branches] = {}
        self._of_goals: dict[Goal, Branches] = {}
        self._empty: dict[Goal, bool] = {}
        self._under_way: list[str] = []
        self._asked: set[Goal] = set()

    # ── the normal form ──

    def branches(self, goal: Goal) -> Branches:
        """What is valid against all subschemas of `goal`."""
        found = self._of_goals.get(goal)
        if found is None:
            found = EVERYTHING
            for pointer in sorted(goal):
                found = self._intersect(found, self.expand(pointer), pointer)
            self._of_goals[goal] = found
        return found

    def expand(self, pointer: str) -> Branches:
        if pointer in self._expanded:
            return self._expanded[pointer]
        if pointer in self._under_way:
            refuse("it refers to itself without anything in between", pointer)
        if len(self._under_way) > MAX_NESTING:
            refuse(f"more than {MAX_NESTING} levels of $ref, allOf, anyOf and oneOf inside of each other", pointer)
        self._under_way.append(pointer)
        schema = self.document.checked(pointer)
        found = (EVERYTHING if schema else ()) if isinstance(schema, bool) else self._expand_keywords(schema, pointer)
        self._under_way.pop()
        self._expanded[pointer] = found
        return found

    def _expand_keywords(self, schema: Mapping[str, Any], pointer: str) -> Branches:
        found = self._intersect(self._enumerated(schema, pointer), typed_branches(schema, pointer, self), pointer)
        if "$ref" in schema:
            found = self._intersect(found, self.expand(self.document.resolve(schema["$ref"], pointer)), pointer)
        for index in range(len(schema.get("allOf", ()))):
            found = self._intersect(found, self.expand(self.document.child(pointer, "allOf", index)), pointer)
        for group in self._rewritten(schema, pointer):
            found = self._intersect(found, self._union(group), pointer)
        if "anyOf" in schema:
            found = self._intersect(found, self._union(self._listed(schema, pointer, "anyOf")), pointer)
        if "oneOf" in schema:
            found = self._exclusive(found, self._listed(schema, pointer, "oneOf"), pointer)
        return found

    def _rewritten(self, schema: Mapping[str, Any], pointer: str) -> list[list[str]]:
        """Keywords that say the same as an anyOf: of each, its alternatives."""
        groups: list[tuple[str, list[Any]]] = []
        if "not" in schema:
            groups.append(("not", complement(schema["not"], pointer + "/not", self.document)))
        if "if" in schema and ("then" in schema or "else" in schema):
            groups.append(("if", alternatives_of_condition(schema)))
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            groups += [(keyword, dependency_alternatives(name, needs)) for name, needs in schema.get(keyword, {}).items()]
        return [[self.document.add(f"{pointer}/{keyword}", alternative) for alternative in group] for keyword, group in groups]

    def _enumerated(self, schema: Mapping[str, Any], pointer: str) -> Branches:
        found = EVERYTHING
        for values in [schema["enum"]] if "enum" in schema else []:
            found = (Values(tuple(dict.fromkeys(map(text_of, values)))),)
        if "const" in schema:
            found = self._intersect(found, (Values((text_of(schema["const"]),)),), pointer)
        return found

    def _listed(self, schema: Mapping[str, Any], pointer: str, keyword: str) -> list[str]:
        return [self.document.child(pointer, keyword, index) for index in range(len(schema[keyword]))]

    def _union(self, pointers: Iterable[str]) -> Branches:
        return _united(branch for pointer in pointers for branch in self.expand(pointer))

    def _exclusive(self, base: Branches, pointers: Sequence[str], pointer: str) -> Branches:
        options = [self._intersect(base, self.expand(option), option) for option in pointers]
        for index, option in enumerate(options):
            for other in range(index):
                if not self._disjoint(options[other], option):
                    refuse(
                        f"alternatives {other} and {index} cannot be told apart for sure: give them a const, or use anyOf",
                        pointer + "/oneOf",
                    )
        return _united(branch for option in options for branch in option)

    # ── intersections ──

    def _intersect(self, one: Branches, other: Branches, pointer: str) -> Branches:
        if one is EVERYTHING or other is EVERYTHING:
            return other if one is EVERYTHING else one
        if len(one) * len(other) > MAX_BRANCHES * 10:
            refuse(f"intersecting {len(one)} and {len(other)} alternatives is too much; the limit is {MAX_BRANCHES * 10} pairs", pointer)
        found = _united(both for a in one for b in other if (both := self.conjoin(a, b)) is not None)
        if len(found) > MAX_BRANCHES:
            refuse(f"it has {len(found)} alternatives after allOf, anyOf and oneOf are worked out; the limit is {MAX_BRANCHES}", pointer)
        return found

    def conjoin(self, one: Branch, other: Branch) -> Branch | None:
        if isinstance(one, Values) or isinstance(other, Values):
            values, condition = (one, other) if isinstance(one, Values) else (other, one)
            assert isinstance(values, Values)
            kept = tuple(text for text in values.texts if self.satisfies(json.loads(text), condition))
            return Values(kept) if kept else None
        return conjoin(one, other)

    def _disjoint(self, one: Branches, other: Branches) -> bool:
        return all((both := self.conjoin(a, b)) is None or self.is_empty(both) for a in one for b in other)

    # ── emptiness: True only when it is certain ──

    def is_impossible(self, goal: Goal) -> bool:
        """No value at all meets the goal. A goal that is being asked about already is taken to be possible."""
        if goal in self._empty:
            return self._empty[goal]
        if goal in self._asked or len(self._asked) > MAX_NESTING:
            return False
        self._asked.add(goal)
        found = all(self.is_empty(branch) for branch in self.branches(goal))
        self._asked.discard(goal)
        if found or not self._asked:
            self._empty[goal] = found
        return found

    def is_empty(self, branch: Branch) -> bool:
        match branch:
            case Values():
                return not branch.texts
            case Numbers():
                low, high = whole_bounds(branch)
                return low is not None and high is not None and low > high
            case Strings():
                return self.strings.is_empty(branch)
            case Arrays():
                needed = range(min(branch.low, len(branch.prefix) + 1))
                return any(self.is_impossible(branch.item(index)) for index in needed)
            case Objects():
                crowded = branch.high is not None and len(branch.required) > branch.high
                return crowded or any(self.is_forbidden(branch, name) for name in branch.required)

    def is_forbidden(self, objects: Objects, name: str) -> bool:
        return not self.may_be_named(objects, name) or self.is_impossible(self.goal_of(objects, name))

    # ── properties by name ──

    def goal_of(self, objects: Objects, name: str) -> Goal:
        """What the value of the property `name` must satisfy."""
        goal: Goal = frozenset()
        for scope in objects.scopes:
            named = [sub for key, sub in scope.named if key == name]
            matching = [sub for pattern, sub in scope.patterns if self.strings.matches(pattern, name)]
            goal = goal.union(*named, *matching) if named or matching else goal | scope.rest
        return goal

    def may_be_named(self, objects: Objects, name: str) -> bool:
        return not objects.keys or self.meets(name, objects.keys)

    # ── values ──

    def meets(self, value: Any, goal: Goal) -> bool:
        return any(self.satisfies(value, branch) for branch in self.branches(goal))

    def satisfies(self, value: Any, branch: Branch) -> bool:
        match branch:
            case Values():
                return any(same(text_of(value), text) for text in branch.texts)
            case Numbers():
                return _is_number(value) and conjoin(branch, _exactly(value)) is not None and _divides(branch, value)
            case Strings():
                return isinstance(value, str) and self.strings.accepts(branch, value)
            case Arrays():
                return isinstance(value, list) and self._fits(value, branch)
            case Objects():
                return isinstance(value, dict) and self._has(value, branch)

    def _fits(self, value: list[Any], branch: Arrays) -> bool:
        if len(value) < branch.low or (branch.high is not None and len(value) > branch.high):
            return False
        if branch.unique and len({json.dumps(item, sort_keys=True) for item in value}) < len(value):
            return False
        enough = all(sum(self.meets(item, goal) for item in value) >= least for goal, least in branch.contains)
        return enough and all(self.meets(item, branch.item(index)) for index, item in enumerate(value))

    def _has(self, value: dict[str, Any], branch: Objects) -> bool:
        if len(value) < branch.low or (branch.high is not None and len(value) > branch.high) or not branch.required <= value.keys():
            return False
        return all(self.may_be_named(branch, name) and self.meets(item, self.goal_of(branch, name)) for name, item in value.items())


def _united(branches: Iterable[Branch]) -> Branches:
    """Without repetitions, and with all values in one branch."""
    found = list(dict.fromkeys(branches))
    texts = dict.fromkeys(text for branch in found if isinstance(branch, Values) for text in branch.texts)
    others = [branch for branch in found if not isinstance(branch, Values)]
    return (Values(tuple(texts)), *others) if texts else tuple(others)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _exactly(value: float) -> Numbers:
    bound = Bound(Decimal(repr(value)), False)
    return Numbers(low=bound, high=bound)


def _divides(branch: Numbers, value: float) -> bool:
    whole = not branch.integer or value == int(value)
    return whole and (branch.step is None or (Fraction(repr(value)) / branch.step).denominator == 1)
