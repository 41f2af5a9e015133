"""A JSON schema → its normal form: references followed, allOf intersected, anyOf united, oneOf split where its alternatives overlap; not
and if are worked in by what a schema rules out (`schema_complement`).

What cannot be brought into that form is refused with its JSON pointer; nothing is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ramet.errors import GrammarError
from ramet.grammar.json_strings import StringFacts
from ramet.grammar.schema_branches import EVERYTHING, NOT, Arrays, Branch, Goal, Numbers, Objects, Some, Strings, Values, conjoin, text_of
from ramet.grammar.schema_complement import absent, present, violations
from ramet.grammar.schema_document import UNEVALUATED, Document, refuse
from ramet.grammar.schema_evaluation import close_arrays, close_objects, unseen
from ramet.grammar.schema_keywords import typed_branches
from ramet.grammar.schema_values import finite_values, is_one_of_some, meets, satisfies

MAX_BRANCHES = 2000
MAX_NESTING = 60
Branches = tuple[Branch, ...]


class Expansion:
    """Everything about one schema document; remembers what it found."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.strings = StringFacts()
        self._expanded: dict[tuple[str, bool], Branches] = {}
        self._of_goals: dict[Goal, Branches] = {}
        self._empty: dict[Goal, bool] = {}
        self._under_way: list[tuple[str, bool]] = []
        self._asked: set[Goal] = set()

    # ── the normal form ──

    def branches(self, goal: Goal) -> Branches:
        """What is valid against all subschemas of `goal`."""
        found = self._of_goals.get(goal)
        if found is None:
            found = self._of_goals[goal] = self.all_of(sorted(goal), min(goal, default=""))
        return found

    def expand(self, pointer: str, tracked: bool = False) -> Branches:
        """`tracked`: an unevaluated… further out asks which properties and items the subschema has seen."""
        tracked = tracked and not pointer.startswith(NOT)
        key = pointer, tracked
        if key in self._expanded:
            return self._expanded[key]
        if key in self._under_way:
            refuse("it refers to itself without anything in between", pointer)
        if len(self._under_way) > MAX_NESTING:
            refuse(f"more than {MAX_NESTING} levels of $ref, allOf, anyOf and oneOf inside of each other", pointer)
        self._under_way.append(key)
        found = self._expand_checked(pointer, tracked)
        self._under_way.pop()
        self._expanded[key] = found
        return found

    def _expand_checked(self, pointer: str, tracked: bool) -> Branches:
        is_opposite, pointer = pointer.startswith(NOT), pointer.removeprefix(NOT)
        schema = self.document.checked(pointer)
        if isinstance(schema, bool):
            return EVERYTHING if schema != is_opposite else ()
        if is_opposite:
            return self._counted(_united(map(unseen, violations(schema, pointer, self))), pointer)
        is_asking = any(schema.get(keyword, True) is not True for keyword in UNEVALUATED)
        found = self._expand_keywords(schema, pointer, tracked or is_asking)
        return self._closed(found, schema, pointer)

    def _expand_keywords(self, schema: Mapping[str, Any], pointer: str, tracked: bool) -> Branches:
        found = self.intersect(self._enumerated(schema, pointer), typed_branches(schema, pointer, self), pointer)
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in schema:
                found = self.intersect(found, self.expand(self.document.resolve(keyword, pointer), tracked), pointer)
        for option in self._listed(schema, pointer, "allOf"):
            found = self.intersect(found, self.expand(option, tracked), pointer)
        if "not" in schema:
            found = self.intersect(found, self.expand(NOT + self.document.child(pointer, "not")), pointer)
        if "if" in schema:
            found = self.intersect(found, self._conditional(schema, pointer, tracked), pointer)
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name in schema.get(keyword, {}):
                found = self.intersect(found, self._dependent(pointer, keyword, name, tracked), pointer)
        if "anyOf" in schema:
            found = self.intersect(found, self._any_of(self._listed(schema, pointer, "anyOf"), pointer, tracked), pointer)
        if "oneOf" in schema:
            found = self._exclusive(found, self._listed(schema, pointer, "oneOf"), pointer, tracked)
        return found

    def _closed(self, found: Branches, schema: Mapping[str, Any], pointer: str) -> Branches:
        """What no keyword has seen, the unevaluated… have."""
        for keyword, close in (("unevaluatedProperties", close_objects), ("unevaluatedItems", close_arrays)):
            if keyword in schema:
                found = close(found, self.document, pointer)
        return found

    def _conditional(self, schema: Mapping[str, Any], pointer: str, tracked: bool) -> Branches:
        condition = self.document.child(pointer, "if")
        cases: list[Branch] = []
        for keyword, case in (("then", condition), ("else", NOT + condition)):
            found = self.expand(case, tracked)
            if keyword in schema:
                found = self.intersect(found, self.expand(self.document.child(pointer, keyword), tracked), pointer)
            cases += found
        return _united(cases) if tracked or schema.keys() & {"then", "else"} else EVERYTHING

    def _dependent(self, pointer: str, keyword: str, name: str, tracked: bool) -> Branches:
        """Without the property, or with what it asks for."""
        needs = self.document.schemas[pointer][keyword][name]
        if isinstance(needs, list) and keyword != "dependentSchemas":
            asked: Branches = (Objects(tuple(dict.fromkeys((name, *needs))), frozenset((name, *needs))),)
        else:
            child = self.expand(self.document.child(pointer, keyword, name), tracked)
            asked = self.intersect((present(name),), child, pointer)
        others = tuple(branch for branch in EVERYTHING if not isinstance(branch, Objects))
        return (*others, absent(self.document, name), *asked)

    def _enumerated(self, schema: Mapping[str, Any], pointer: str) -> Branches:
        found = EVERYTHING
        for values in [schema["enum"]] if "enum" in schema else []:
            found = (Values(tuple(dict.fromkeys(map(text_of, values)))),)
        if "const" in schema:
            found = self.intersect(found, (Values((text_of(schema["const"]),)),), pointer)
        return found

    def _listed(self, schema: Mapping[str, Any], pointer: str, keyword: str) -> list[str]:
        return [self.document.child(pointer, keyword, index) for index in range(len(schema.get(keyword, ())))]

    def _any_of(self, options: Sequence[str], pointer: str, tracked: bool) -> Branches:
        """Where it matters which of them hold, also every number of them together."""
        found: Branches = ()
        for option in options:
            branches = self.expand(option, tracked)
            both = self.intersect(found, branches, pointer) if tracked else ()
            found = self._counted(_united((*found, *branches, *both)), pointer)
        return found

    def _exclusive(self, base: Branches, pointers: Sequence[str], pointer: str, tracked: bool) -> Branches:
        """Of alternatives that might overlap, each without the others."""
        options = [self.intersect(base, self.expand(option, tracked), option) for option in pointers]
        found: list[Branch] = []
        for index, option in enumerate(options):
            for other, rival in enumerate(pointers):
                if other != index and not self._disjoint(options[other], options[index]):
                    option = self._without(option, rival, pointer, (index, other))
            found += option
        return _united(found)

    def _without(self, option: Branches, rival: str, pointer: str, which: tuple[int, int]) -> Branches:
        try:
            return self.intersect(option, self.expand(NOT + rival), pointer)
        except GrammarError as error:
            reason = error.message.removeprefix("json_schema: ")
            what = f"alternatives {which[0]} and {which[1]} cannot be told apart for sure ({reason}): give them a const, or use anyOf"
            refuse(what, pointer + "/oneOf")

    # ── intersections ──

    def all_of(self, goals: Iterable[str], pointer: str) -> Branches:
        found = EVERYTHING
        for goal in goals:
            found = self.intersect(found, self.expand(goal), pointer)
        return found

    def intersect(self, one: Branches, other: Branches, pointer: str) -> Branches:
        if one is EVERYTHING or other is EVERYTHING:
            return other if one is EVERYTHING else one
        if len(one) * len(other) > MAX_BRANCHES * 10:
            refuse(f"intersecting {len(one)} and {len(other)} alternatives is too much; the limit is {MAX_BRANCHES * 10} pairs", pointer)
        found = _united(both for a in one for b in other if (both := self.conjoin(a, b)) is not None)
        return self._counted(found, pointer)

    def _counted(self, found: Branches, pointer: str) -> Branches:
        if len(found) > MAX_BRANCHES:
            refuse(f"it has {len(found)} alternatives after allOf, anyOf and oneOf are worked out; the limit is {MAX_BRANCHES}", pointer)
        return found

    def conjoin(self, one: Branch, other: Branch) -> Branch | None:
        if isinstance(one, Values) or isinstance(other, Values):
            values, condition = (one, other) if isinstance(one, Values) else (other, one)
            assert isinstance(values, Values)
            kept = tuple(text for text in values.texts if satisfies(json.loads(text), condition, self))
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
                return conjoin(branch, branch) is None
            case Strings():
                return self.strings.is_empty(branch)
            case Arrays():
                needed = range(min(branch.low, len(branch.prefix) + 1))
                return any(self.is_impossible(branch.item(index)) for index in needed)
            case Objects():
                crowded = branch.high is not None and len(branch.required) > branch.high
                if crowded or any(self.is_forbidden(branch, name) for name in branch.required):
                    return True
                return bool(branch.some) and all(some is None and self.is_empty(one) for one, some in self.settled(branch))

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
        return meets(value, goal, self)

    def finite(self, goal: Goal) -> tuple[str, ...] | None:
        """The texts of all values that meet it; None where they are not few."""
        return finite_values(self.branches(goal))

    # ── properties of which one must be there ──

    def settled(self, branch: Objects) -> Iterator[tuple[Objects, Some | None]]:
        """Branches without `some`, whose union it is: a declared property is the one that is asked for, or an undeclared one that is told
        apart."""
        names = tuple(dict.fromkeys((*branch.names, *self._few_names(branch))))
        found: list[tuple[Objects, Some | None]] = [(replace(branch, names=names, some=frozenset()), None)]
        for some in sorted(branch.some, key=repr):
            found = [settled for one in found for settled in self._settle(*one, some)]
        yield from found

    def _settle(self, branch: Objects, undeclared: Some | None, some: Some) -> Iterator[tuple[Objects, Some | None]]:
        for name in branch.names:
            named = conjoin(branch, present(name, some.value)) if is_one_of_some(name, some, self) else None
            if isinstance(named, Objects):
                yield named, undeclared
        if self._has_room(branch):
            if undeclared is not None:
                refuse("two undeclared properties that must be there cannot be enforced", branch.counted_at)
            yield branch, some

    def _few_names(self, branch: Objects) -> list[str]:
        """Names, if propertyNames leaves but a few."""
        texts = self.finite(branch.keys) if branch.keys else None
        return [json.loads(text) for text in texts or () if text.startswith('"')]

    def _has_room(self, branch: Objects) -> bool:
        """Undeclared properties may be possible."""
        rest: Goal = frozenset().union(*(scope.rest for scope in branch.scopes))
        return any(scope.patterns for scope in branch.scopes) or not self.is_impossible(rest)


def _united(branches: Iterable[Branch]) -> Branches:
    """Without repetitions, and with all values in one branch."""
    found = list(dict.fromkeys(branches))
    texts = dict.fromkeys(text for branch in found if isinstance(branch, Values) for text in branch.texts)
    others = [branch for branch in found if not isinstance(branch, Values)]
    return (Values(tuple(texts)), *others) if texts else tuple(others)
