"""JSON numbers within bounds, and multiples, as rules.

With an exponent they have one digit before the point, and of two of them the one with the larger exponent is larger: bounds are about
digits only where the exponent is a bound's own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from ramet.grammar.arena import EPSILON, NONE, Arena
from ramet.grammar.copied_expressions import copied
from ramet.grammar.magnitude_automaton import NumberSet, magnitudes

LEAST = Decimal("1e-30")
"""From there on numbers are written without exponent: hundreds of zeros help nobody."""
MOST_FLOAT, LEAST_FLOAT = Decimal(repr(sys.float_info.max)), Decimal("5e-324")
LARGE_STEP = 100
"""Multiples of larger whole numbers are written without fraction, which is fewer states."""
ANY_NUMBER = NumberSet(False)


class _Zone(NamedTuple):
    """Powers of ten with which Python writes floats."""

    first: int
    last: int


SMALL, LARGE = _Zone(-324, -5), _Zone(16, 308)


@copied
def number_expression(arena: Arena, numbers: NumberSet) -> int:
    """A rule, so that a grammar in which the same numbers come up often says once what they are."""
    body = _numbers(arena, numbers)
    return body if body == NONE else arena.define(arena.new_rule(), body)


def _numbers(arena: Arena, numbers: NumberSet) -> int:
    """Each character is a lexeme of its own: were whole numbers lexemes, the longest match of one alternative would hide another's."""
    low, high = numbers.low, numbers.high
    if numbers.integer and numbers.step is not None:
        whole = numbers.step.numerator  # the least whole multiple: of 0.01 every integer is one
        numbers = numbers._replace(step=Fraction(whole) if whole > 1 else None)
    if numbers.step is not None and numbers.step.denominator == 1 and numbers.step > LARGE_STEP:
        numbers = numbers._replace(integer=True)
    if high is None and numbers.step is None and not numbers.avoided and low in (None, 0):
        return _unbounded(arena, numbers.integer, signed=low is None)
    zero, minus = Decimal(0), _spelled(arena, "--")
    positive = max(low or zero, zero), high
    negative = max(-(high or zero), zero), None if low is None else -low
    may_be_negative = low is None or low < 0
    if may_be_negative and positive == negative:
        return arena.seq(arena.optional(minus), _magnitudes(arena, numbers, *positive))
    parts = [_magnitudes(arena, numbers, *positive)] if high is None or high >= 0 else []
    if may_be_negative:
        parts.append(arena.seq(minus, _magnitudes(arena, numbers, *negative)))
    return arena.alt(parts)


def literal_number(arena: Arena, text: str) -> int:
    return _spelled(arena, *[char * 2 for char in text])


def _unbounded(arena: Arena, integer: bool, signed: bool) -> int:
    digit = _spelled(arena, "09")
    sign = arena.optional(_spelled(arena, "--")) if signed else EPSILON
    whole = arena.alt((_spelled(arena, "00"), arena.seq(_spelled(arena, "19"), arena.rep(digit))))
    if integer:
        return arena.seq(sign, whole)
    fraction = arena.optional(arena.seq(_spelled(arena, ".."), arena.rep(digit, 1)))
    signs = arena.optional(arena.lexeme(arena.chars(((0x2B, 0x2B), (0x2D, 0x2D)))))
    power = arena.alt((arena.rep(digit, 1, 2), _spelled(arena, "12", "09", "09")))
    exponent = arena.optional(arena.seq(_exponent(arena), signs, power))
    digits = arena.seq(_spelled(arena, "19"), fraction)
    small = arena.seq(digits, _exponent(arena), _spelled(arena, "--", "33", "02", "09"))
    plus = arena.seq(_exponent(arena), arena.optional(_spelled(arena, "++")))
    largest = arena.seq(_largest(arena), plus, literal_number(arena, "308"))
    large = arena.alt((arena.seq(digits, plus, _spelled(arena, "33", "00", "07")), largest))
    extreme = arena.alt((large, small))
    return arena.seq(sign, arena.alt((arena.seq(whole, fraction, exponent), extreme)))


def _magnitudes(arena: Arena, numbers: NumberSet, low: Decimal, high: Decimal | None) -> int:
    least, most = max(low, LEAST) if low else low, Decimal(0) if high is not None and high < LEAST else high
    found = [magnitudes(arena, numbers, least, most)] if most is None or least <= most else []
    if not (numbers.integer or numbers.step or numbers.avoided):
        low, high = max(low, LEAST_FLOAT), MOST_FLOAT if high is None else min(high, MOST_FLOAT)
        found += [_scientific(arena, zone, low, high) for zone in (SMALL, LARGE)]
    return arena.alt(found)


def _scientific(arena: Arena, zone: _Zone, low: Decimal, high: Decimal) -> int:
    """With an exponent of the zone. At a bound's own exponent the digits must be on its side."""
    if low > high:
        return NONE
    one, found = Decimal(1), list[int]()
    first, last = max(zone.first, low.adjusted()), min(zone.last, high.adjusted())
    least, most = _digits_of(low) if low.adjusted() == first else one, _digits_of(high) if high.adjusted() == last else None
    if first == last:
        return arena.seq(_mantissa(arena, least, most), _power(arena, first, last))
    if first < last and least > one:
        found.append(arena.seq(_mantissa(arena, least, None), _power(arena, first, first)))
        first += 1
    if first <= last and most is not None:
        mantissa = _largest(arena) if high == MOST_FLOAT else _mantissa(arena, one, most)
        found.append(arena.seq(mantissa, _power(arena, last, last)))
        last -= 1
    if first <= last:
        found.append(arena.seq(_mantissa(arena, one, None), _power(arena, first, last)))
    return arena.alt(found)


def _mantissa(arena: Arena, low: Decimal, high: Decimal | None) -> int:
    if high is not None or low != int(low):
        return magnitudes(arena, ANY_NUMBER, low, high, longest=1)
    return arena.seq(_spelled(arena, f"{int(low)}9"), arena.optional(arena.seq(_spelled(arena, ".."), arena.rep(_spelled(arena, "09"), 1))))


def _digits_of(value: Decimal) -> Decimal:
    """With one of them before the point; whatever the context's precision."""
    _, digits, _ = value.as_tuple()
    return Decimal((0, digits, 1 - len(digits)))


def _power(arena: Arena, first: int, last: int) -> int:
    """`e` and one of these powers, all of one sign; those of one digit with a zero before it, or without."""
    sign = _spelled(arena, "--") if first < 0 else arena.optional(_spelled(arena, "++"))
    least, most = sorted((abs(first), abs(last)))
    zero = arena.optional(_spelled(arena, "00"))
    powers = (arena.seq(zero if len(span) == 1 else EPSILON, _spelled(arena, *span)) for span in _spans(least, most))
    return arena.seq(_exponent(arena), sign, arena.alt(powers))


def _spans(low: int, high: int) -> Iterator[tuple[str, ...]]:
    """Whole numbers from `low`, which is greater than 0, to `high`: of each place the least and the greatest digit. Few of them take no
    rules, other than an automaton."""
    while low <= high:
        power = 1
        while low % (power * 10) == 0 and low + power * 10 - 1 <= high:
            power *= 10
        digit = low // power % 10
        most = min(9, digit + (high - low + 1) // power - 1)
        before = str(low // (power * 10)) if low >= power * 10 else ""
        yield *(char * 2 for char in before), f"{digit}{most}", *["09"] * (len(str(power)) - 1)
        low += (most - digit + 1) * power


def _largest(arena: Arena) -> int:
    """Up to 1.79, and that of the largest float."""
    digit, one, seven = arena.rep(_spelled(arena, "09")), _spelled(arena, "11"), _spelled(arena, "77")
    below = arena.alt((arena.seq(_spelled(arena, "06"), digit), arena.seq(seven, arena.optional(arena.seq(_spelled(arena, "08"), digit)))))
    most = literal_number(arena, repr(sys.float_info.max).partition("e")[0])
    return arena.alt((most, arena.seq(one, arena.optional(arena.seq(_spelled(arena, ".."), below)))))


def _exponent(arena: Arena) -> int:
    return arena.lexeme(arena.chars(((0x45, 0x45), (0x65, 0x65))))


def _spelled(arena: Arena, *ranges: str) -> int:
    """One character of each range ("09"), each a lexeme."""
    return arena.seq(*[arena.lexeme(arena.chars(((ord(ends[0]), ord(ends[1])),))) for ends in ranges])
