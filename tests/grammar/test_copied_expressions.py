"""Copies of an expression against the expression made in place."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from ramet.grammar.arena import Arena
from ramet.grammar.copied_expressions import MAX_NODES, copied
from ramet.grammar.derivatives import Walker
from ramet.grammar.json_strings import string_body
from ramet.grammar.magnitude_automaton import NumberSet
from ramet.grammar.number_automaton import number_expression
from ramet.grammar.schema_branches import Strings

CASES: list[tuple[Any, Any]] = [
    *((number_expression, NumberSet(integer)) for integer in (True, False)),
    (number_expression, NumberSet(True, Decimal(-90), Decimal(4910))),
    (number_expression, NumberSet(True, Decimal(0), Decimal(600), Fraction(15))),
    (number_expression, NumberSet(False, Decimal("1e-30"), Decimal("99.5"), None, frozenset({Fraction(7)}))),
    (string_body, Strings(low=1, high=80)),
    (string_body, Strings(formats=frozenset({"date-time"}))),
    (string_body, Strings(patterns=frozenset({r"^[a-z_]+(\.[a-z_]+)*$", "b"}), excluded=frozenset({"ab"}), high=9)),
]


@pytest.mark.parametrize(("place", "key"), CASES, ids=[f"{place.__name__} {index}" for index, (place, _) in enumerate(CASES)])
def test_a_copy_is_the_same_language(place: Any, key: Any) -> None:
    made, copy = Arena(), Arena()
    copy.seq(copy.text("other"), copy.new_rule())  # so that nodes and rules have other numbers there
    original = place.__wrapped__(made, key)
    for _ in range(2):
        assert same_language(Walker(made), original, (arena := Arena(), place(arena, key)))
    assert same_language(Walker(made), original, (copy, place(copy, key)))
    assert place(copy, key) == place(copy, key)


def same_language(walker: Walker, start: int, other: tuple[Arena, int], num_walks: int = 60) -> bool:
    """On random walks through the first, with a wrong byte now and then."""
    theirs, rng = Walker(other[0]), random.Random(0)
    for _ in range(num_walks):
        one, two = start, other[1]
        for _ in range(30):
            if (walker.nullable(one), walker.shortest(one)) != (theirs.nullable(two), theirs.shortest(two)):
                return False
            byte = rng.choice(walker.representatives(one)) if rng.random() < 0.95 else rng.randrange(256)
            one, two = walker.step(one, byte), theirs.step(two, byte)
    return True


def test_what_was_made_before_is_not_made_again_and_what_is_huge_is_not_kept() -> None:
    calls: list[int] = []

    @copied
    def series(arena: Arena, length: int) -> int:
        calls.append(length)
        return arena.alt(arena.text(f"x{index}") for index in range(length))

    for length in (3, 3, MAX_NODES, MAX_NODES, 3):
        arena = Arena()
        assert Walker(arena).shortest(series(arena, length)) == 2
    assert calls == [3, MAX_NODES, MAX_NODES]


def test_an_error_is_raised_each_time() -> None:
    @copied
    def broken(arena: Arena, key: int) -> int:
        raise ValueError(key)

    for _ in range(2):
        with pytest.raises(ValueError, match="7"):
            broken(Arena(), 7)
