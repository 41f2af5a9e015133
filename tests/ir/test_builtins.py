"""Builtins give what Python gives; the bounded regular expressions agree with the standard ones."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.ir.bounded_regex import Matcher, TooMuchWork, find, find_all
from ramet.ir.builtins import BUILTINS, LimitExceeded, evaluate, measure

plain = st.one_of(st.integers(-50, 50), st.text("ab 1", max_size=5), st.booleans(), st.none(), st.lists(st.integers(0, 3), max_size=3))
PYTHON: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "mod": lambda a, b: a % b,
    "eq": lambda a, b: a == b,
    "lt": lambda a, b: a < b,
    "in": lambda a, b: a in b,
    "floordiv": lambda a, b: a // b,
}


@pytest.mark.parametrize("name", PYTHON)
@settings(max_examples=60, deadline=None)
@given(left=plain, right=plain)
def test_operators_are_pythons(name: str, left: Any, right: Any) -> None:
    try:
        wanted: Any = PYTHON[name](left, right)
    except Exception as error:
        with pytest.raises(type(error)):
            evaluate(name, [left, right])
    else:
        assert evaluate(name, [left, right]) == wanted


atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\s", "(a)", "(a|b)", "(?:ab)", "^", "$", r"\b"])
patterns = st.lists(st.tuples(atoms, st.sampled_from(["", "*", "+", "?", "{1,2}", "*?", "+?"])), min_size=1, max_size=4).map(
    lambda parts: "".join(atom + (repeat if atom not in ("^", "$", r"\b") else "") for atom, repeat in parts)
)


@settings(max_examples=400, deadline=None)
@given(patterns, st.text("ab1 \n", max_size=8))
def test_bounded_regular_expressions_agree_with_the_standard_ones(pattern: str, text: str) -> None:
    for mode in ("fullmatch", "match", "search"):
        match = getattr(re, mode)(pattern, text)
        wanted = None if match is None else [match.group(), *match.groups()]
        assert find(pattern, text, mode) == wanted
        counted = Matcher(pattern, text).find(0, mode)
        assert counted == (None if match is None else (match.span(), wanted)), "the matcher that counts"
    assert [span for span, _ in find_all(pattern, text) if span[0] < span[1]] == [m.span() for m in re.finditer(pattern, text) if m.group()]


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "a*a*a*a*a*a*b", "(.*)*x"])
def test_catastrophic_patterns_stop(pattern: str) -> None:
    with pytest.raises(TooMuchWork):
        find(pattern, "a" * 60, "fullmatch")


@pytest.mark.parametrize("pattern", ["a*a*a*a*b", "[ab]*?c", ".*.*.*city", "a{0,999}a{0,999}b"])
def test_no_flat_pattern_takes_long(pattern: str) -> None:
    began = time.process_time()
    for length in (10, 100, 1_000, 10_000):
        with suppress(TooMuchWork):
            assert find(pattern, "a" * length, "search") is None
    assert time.process_time() - began < 2


def test_values_are_measured() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    shared: list[Any] = [0]
    for _ in range(40):
        shared = [shared, shared]
    for value in (cycle, shared):
        with pytest.raises(LimitExceeded):
            measure(value)
        with pytest.raises(LimitExceeded):
            evaluate("str", [value])


def test_no_builtin_reaches_an_attribute() -> None:
    assert not [name for name in BUILTINS if "__" in name]
    with pytest.raises(AttributeError, match="that a program may use"):
        evaluate(".upper", [5])
