"""The normal form of a schema: a union of branches, each of one type. `conjoin` intersects two of them.

A `Goal` stands for "valid against all of these subschemas". What is inside of arrays and objects stays a goal, so that recursive schemas
have a finite normal form.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Any, NamedTuple

Goal = frozenset[str]
"""Pointers of subschemas; with ! before it, what is not valid against that subschema."""
ANYTHING: Goal = frozenset()
NOT = "!"


class Bound(NamedTuple):
    value: Decimal
    is_open: bool


@dataclass(frozen=True, slots=True)
class Values:
    """Some values, each as its JSON text. They fit in any branch whose conditions they meet."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    integer: bool = False
    low: Bound | None = None
    high: Bound | None = None
    step: Fraction | None = None
    avoided: frozenset[Fraction] = frozenset()  # of which it is no multiple


@dataclass(frozen=True, slots=True)
class Strings:
    low: int = 0
    high: int | None = None
    patterns: frozenset[str] = frozenset()
    formats: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    unmatched: frozenset[str] = frozenset()  # patterns that match nowhere in it


class Contains(NamedTuple):
    """So many of the items from `start` on meet the subschema at `pointer`."""

    pointer: str
    least: int
    most: int | None = None
    start: int = 0


@dataclass(frozen=True, slots=True)
class Arrays:
    """Item i is `prefix[i]`, further ones `rest`. Seen by unevaluatedItems: the first `num_seen` items (None: all), and those that meet a
    subschema of `seen`."""

    prefix: tuple[Goal, ...] = ()
    rest: Goal = ANYTHING
    low: int = 0
    high: int | None = None
    unique: str = ""  # pointer of the uniqueItems that asks for it
    contains: tuple[Contains, ...] = ()
    num_seen: int | None = 0
    seen: frozenset[str] = frozenset()

    def item(self, index: int) -> Goal:
        return self.prefix[index] if index < len(self.prefix) else self.rest


@dataclass(frozen=True, slots=True)
class Scope:
    """What one schema says of properties by name: those it names, those whose names match, and the rest. `is_seen`: unevaluatedProperties
    has nothing to say about those of which it says something."""

    named: tuple[tuple[str, Goal], ...] = ()
    patterns: tuple[tuple[str, Goal], ...] = ()
    rest: Goal = ANYTHING
    is_seen: bool = True


class Some(NamedTuple):
    """One of the properties whose names are none of `names`, match `matched` if given and none of `unmatched`, and satisfy `keys`, has a
    value that satisfies `value`."""

    value: Goal
    names: frozenset[str] = frozenset()
    unmatched: frozenset[str] = frozenset()
    matched: str | None = None
    keys: Goal = ANYTHING


@dataclass(frozen=True, slots=True)
class Objects:
    """`names`: all that some scope names, in the order in which they are written. `keys`: what the names themselves must satisfy."""

    names: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    low: int = 0
    high: int | None = None
    scopes: tuple[Scope, ...] = ()
    keys: Goal = ANYTHING
    counted_at: str = ""  # pointer of the schema that counts them
    some: frozenset[Some] = frozenset()


Branch = Values | Numbers | Strings | Arrays | Objects
NULL_AND_BOOLEANS = Values(("null", "true", "false"))
EVERYTHING: tuple[Branch, ...] = (NULL_AND_BOOLEANS, Numbers(), Strings(), Arrays(), Objects())


def opposite(pointer: str) -> str:
    """Of a goal's member: what is not valid where that is."""
    return pointer.removeprefix(NOT) if pointer.startswith(NOT) else NOT + pointer


def conjoin(one: Branch, other: Branch) -> Branch | None:
    """Their intersection, None when it is surely empty. Not for `Values` beside another type: see `Expansion`."""
    match one, other:
        case Numbers(), Numbers():
            return _numbers(one, other)
        case Strings(), Strings():
            low, high = max(one.low, other.low), least(one.high, other.high)
            unmatched = one.unmatched | other.unmatched
            patterns = one.patterns | other.patterns
            joined = Strings(low, high, patterns, one.formats | other.formats, one.excluded | other.excluded, unmatched)
            return None if (high is not None and low > high) or patterns & unmatched else joined
        case Arrays(), Arrays():
            return _arrays(one, other)
        case Objects(), Objects():
            names = tuple(dict.fromkeys((*one.names, *other.names)))
            low, high = max(one.low, other.low), least(one.high, other.high)
            scopes = tuple(dict.fromkeys((*one.scopes, *other.scopes)))
            counted_at = one.counted_at or other.counted_at
            required, keys, some = one.required | other.required, one.keys | other.keys, one.some | other.some
            return None if high is not None and low > high else Objects(names, required, low, high, scopes, keys, counted_at, some)
    return None


def whole_bounds(numbers: Numbers) -> tuple[Decimal | None, Decimal | None]:
    """Inclusive bounds for what is written. A fraction that floats cannot tell from an open bound is on its wrong side already."""
    low, high = numbers.low, numbers.high
    if numbers.integer:
        return (
            None if low is None else _ceiling(low.value) + (low.is_open and low.value == _ceiling(low.value)),
            None if high is None else _floor(high.value) - (high.is_open and high.value == _floor(high.value)),
        )
    return (
        None if low is None else low.value if not low.is_open else _beside(low.value, math.inf),
        None if high is None else high.value if not high.is_open else _beside(high.value, -math.inf),
    )


def least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def text_of(value: Any) -> str:
    """The one way in which a value is written: compact, and a whole number without its fraction."""
    return _COMPACT.encode(_plain(value))


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def same(one: str, other: str) -> bool:
    """Equal as JSON values."""
    return one == other or (one[0] == other[0] == "{" and _sorted(one) == _sorted(other))


def _sorted(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _numbers(one: Numbers, other: Numbers) -> Numbers | None:
    lows = [bound for bound in (one.low, other.low) if bound is not None]
    highs = [bound for bound in (one.high, other.high) if bound is not None]
    steps = [step for step in (one.step, other.step) if step is not None]
    joined = Numbers(
        one.integer or other.integer,
        max(lows, default=None),
        min(highs, key=lambda bound: (bound.value, not bound.is_open), default=None),
        steps[0] if len(steps) == 1 else _common_multiple(*steps) if steps else None,
        one.avoided | other.avoided,
    )
    low, high = whole_bounds(joined)
    is_empty = low is not None and high is not None and low > high
    return None if is_empty or _only_avoided(joined) else joined


def _only_avoided(numbers: Numbers) -> bool:
    """All multiples of its step are multiples of one that it avoids."""
    step = numbers.step or (Fraction(1) if numbers.integer else None)
    return step is not None and any((step / avoided).denominator == 1 for avoided in numbers.avoided)


def _arrays(one: Arrays, other: Arrays) -> Arrays | None:
    length = max(len(one.prefix), len(other.prefix))
    low, high = max(one.low, other.low), least(one.high, other.high)
    if high is not None and low > high:
        return None
    return replace(
        one,
        prefix=tuple(one.item(index) | other.item(index) for index in range(length)),
        rest=one.rest | other.rest,
        low=low,
        high=high,
        unique=one.unique or other.unique,
        contains=tuple(dict.fromkeys((*one.contains, *other.contains))),
        num_seen=None if None in (one.num_seen, other.num_seen) else max(one.num_seen or 0, other.num_seen or 0),
        seen=one.seen | other.seen,
    )


def _common_multiple(one: Fraction, other: Fraction) -> Fraction:
    denominator = math.lcm(one.denominator, other.denominator)
    return Fraction(math.lcm(int(one * denominator), int(other * denominator)), denominator)


def _ceiling(value: Decimal) -> Decimal:
    return value.to_integral_value(ROUND_CEILING)


def _floor(value: Decimal) -> Decimal:
    return value.to_integral_value(ROUND_FLOOR)


def _beside(value: Decimal, toward: float) -> Decimal:
    """The next float; past floats, the next integer."""
    beside = math.nextafter(float(value), toward)
    return Decimal(int(value) + int(math.copysign(1, toward))) if math.isinf(beside) else Decimal(repr(beside))
