"""Given values against the normal form of a schema."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

from ramet.grammar.json_strings import StringFacts
from ramet.grammar.schema_branches import (
    Arrays,
    Bound,
    Branch,
    Goal,
    Numbers,
    Objects,
    Some,
    Strings,
    Values,
    conjoin,
    same,
    text_of,
    whole_bounds,
)

MAX_FINITE = 64


class Facts(Protocol):
    strings: StringFacts

    def branches(self, goal: Goal) -> tuple[Branch, ...]: ...

    def goal_of(self, objects: Objects, name: str) -> Goal: ...

    def may_be_named(self, objects: Objects, name: str) -> bool: ...


def meets(value: Any, goal: Goal, facts: Facts) -> bool:
    return any(satisfies(value, branch, facts) for branch in facts.branches(goal))


def satisfies(value: Any, branch: Branch, facts: Facts) -> bool:
    match branch:
        case Values():
            return any(same(text_of(value), text) for text in branch.texts)
        case Numbers():
            return is_number(value) and conjoin(branch, _exactly(value)) is not None and _divides(branch, value)
        case Strings():
            return isinstance(value, str) and facts.strings.accepts(branch, value)
        case Arrays():
            return isinstance(value, list) and _fits(value, branch, facts)
        case Objects():
            return isinstance(value, dict) and _has(value, branch, facts)


def is_one_of_some(name: str, some: Some, facts: Facts) -> bool:
    """Whether the property is among those that `some` is about."""
    if name in some.names or any(facts.strings.matches(pattern, name) for pattern in some.unmatched):
        return False
    return (some.matched is None or facts.strings.matches(some.matched, name)) and (not some.keys or meets(name, some.keys, facts))


def finite_values(branches: tuple[Branch, ...]) -> tuple[str, ...] | None:
    """All of them as JSON texts, each once; None where they are many, or none of few kinds."""
    found: dict[str, str] = {}
    for branch in branches:
        texts = branch.texts if isinstance(branch, Values) else _small_range(branch) if isinstance(branch, Numbers) else None
        if texts is None:
            return None
        found |= {json.dumps(json.loads(text), sort_keys=True): text for text in texts}
    return tuple(found.values())


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _small_range(numbers: Numbers) -> tuple[str, ...] | None:
    low, high = whole_bounds(numbers)
    if not numbers.integer or low is None or high is None or high - low > MAX_FINITE:
        return None
    return tuple(str(value) for value in range(int(low), int(high) + 1) if _divides(numbers, value))


def _exactly(value: float) -> Numbers:
    bound = Bound(Decimal(repr(value)), False)
    return Numbers(low=bound, high=bound)


def _divides(branch: Numbers, value: float) -> bool:
    exact = Fraction(repr(value))
    steps = [step for step in (branch.step, Fraction(1) if branch.integer else None) if step is not None]
    return all((exact / step).denominator == 1 for step in steps) and all((exact / step).denominator != 1 for step in branch.avoided)


def _fits(value: list[Any], branch: Arrays, facts: Facts) -> bool:
    if len(value) < branch.low or (branch.high is not None and len(value) > branch.high):
        return False
    if branch.unique and len({json.dumps(json.loads(text_of(item)), sort_keys=True) for item in value}) < len(value):
        return False
    for wanted in branch.contains:
        found = sum(meets(item, frozenset({wanted.pointer}), facts) for item in value[wanted.start :])
        if found < wanted.least or (wanted.most is not None and found > wanted.most):
            return False
    return all(meets(item, branch.item(index), facts) for index, item in enumerate(value))


def _has(value: dict[str, Any], branch: Objects, facts: Facts) -> bool:
    if len(value) < branch.low or (branch.high is not None and len(value) > branch.high) or not branch.required <= value.keys():
        return False
    for some in branch.some:
        if not any(is_one_of_some(name, some, facts) and meets(item, some.value, facts) for name, item in value.items()):
            return False
    return all(facts.may_be_named(branch, name) and meets(item, facts.goal_of(branch, name), facts) for name, item in value.items())
