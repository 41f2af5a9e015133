"""Decimal numbers without sign and exponent, between two bounds: an automaton from the left, with what is known about the bounds so far."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import gcd
from typing import NamedTuple

from ramet.errors import GrammarError
from ramet.grammar.arena import Arena
from ramet.grammar.automaton_rules import Ways, automaton_expression
from ramet.grammar.char_ranges import Ranges, union

MAX_STATES = 20_000
EXACT_DIGITS = 15
"""Fractions of so many digits are what floats can tell apart: more could make a multiple of what is none."""


class NumberSet(NamedTuple):
    """Numbers from `low` to `high` (both in it) that `step`, if given, divides, and none of `avoided`. Written without exponent if they
    are whole or there is a step; else with one, too, where floats are (below 0.0001, from 1e16 on)."""

    integer: bool
    low: Decimal | None = None
    high: Decimal | None = None
    step: Fraction | None = None
    avoided: frozenset[Fraction] = frozenset()


def magnitudes(arena: Arena, numbers: NumberSet, low: Decimal, high: Decimal | None, longest: int | None = None) -> int:
    """The `numbers` from `low` to `high`, whatever bounds they name themselves; `longest`: digits before the point."""
    return _Magnitudes(arena, numbers, low, high, longest).expression()


class _Divisor(NamedTuple):
    """The number times 10^places must be a multiple of `of`, or must be none."""

    of: int
    places: int
    divides: bool

    def reduced(self, rest: int, seen: int) -> int:
        """What matters of a remainder after `seen` digits of the fraction: more digits will move it to the left."""
        return rest % (self.of // gcd(self.of, 10 ** max(self.places - seen, 0)))

    def can_divide(self, rest: int, seen: int) -> bool:
        """Whether more digits could make it a multiple."""
        power: int = 10 ** max(self.places - seen, 0)
        return rest != NEVER and -rest * power % self.of < power


NEVER = -1
"""The remainder of a number that has digits behind the last place where multiples have any."""


class _State(NamedTuple):
    """After `seen` digits of the integer part (or the fraction): how they compare with the bounds' digits, and the remainders."""

    fraction: bool
    seen: int
    low: int
    high: int
    rests: tuple[int, ...]
    zero: bool = False  # the integer part is 0: no digit may follow
    room: int = EXACT_DIGITS  # of a fraction that must, or must not, be a multiple: digits that may still come


class _Magnitudes:
    """`longest`: digits before the point."""

    def __init__(self, arena: Arena, numbers: NumberSet, low: Decimal, high: Decimal | None, longest: int | None) -> None:
        self._arena = arena
        self._integer = numbers.integer
        self._low = _digits(low)
        self._high = None if high is None else _digits(high)
        self._divisors = [_scaled(step, True) for step in (numbers.step,) if step is not None]
        self._divisors += [_scaled(step, False) for step in sorted(numbers.avoided)]
        bounds = [self._low] if self._high is None else [self._low, self._high]
        self._is_exact = bool(self._divisors) and not numbers.integer
        self._longest = EXACT_DIGITS if numbers.avoided - {Fraction(1)} else longest  # validators divide in floats
        least = EXACT_DIGITS if self._is_exact or self._longest else 0
        self._most = max(least, *(len(whole) for whole, _ in bounds)) + 1
        self._most_places = max((divisor.places for divisor in self._divisors), default=0)

    def expression(self) -> int:
        start = _State(False, 0, 0, 0, (0,) * len(self._divisors))
        ways: dict[_State, Ways[_State]] = {}
        queue = [start]
        while queue:
            state = queue.pop()
            if state in ways:
                continue
            if len(ways) >= MAX_STATES:
                raise GrammarError(f"numbers with these bounds and multipleOf need more than {MAX_STATES} states; use smaller ones")
            steps = self._steps(state)
            ways[state] = Ways(self._accepts(state), steps)
            queue += steps
        return automaton_expression(self._arena, ways, start)

    def _steps(self, state: _State) -> dict[_State, Ranges]:
        steps: dict[_State, Ranges] = {}
        for first, last in pairwise(self._cuts(state)):
            following = self._fraction_digit(state, first) if state.fraction else self._whole_digit(state, first)
            if following is not None:
                steps[following] = union((*steps.get(following, ()), (48 + first, 47 + last)))
        point = None if state.fraction or self._integer else self._point(state)
        if point is not None:
            steps[point] = ((0x2E, 0x2E),)
        return steps

    def _cuts(self, state: _State) -> list[int]:
        """Digits at which one begins to lead elsewhere, and 10: but for remainders, only those of the bounds do, and a first zero."""
        if self._divisors:
            return list(range(11))
        found = {0, 10}
        for bound in (self._low, self._high or self._low):
            digit = _place(bound[state.fraction], state.seen)
            found |= {digit, digit + 1}
        if not state.fraction and state.seen == 0:
            found.add(1)
        return sorted(found)

    def _whole_digit(self, state: _State, digit: int) -> _State | None:
        at = state.seen
        if state.zero or at == self._longest or (self._high is not None and at >= len(self._high[0])):
            return None
        low = state.low or (_compare(digit, self._low[0][at]) if at < len(self._low[0]) else 0)
        high = state.high or (_compare(digit, self._high[0][at]) if self._high is not None else 0)
        seen = min(at + 1, self._most)
        if seen == self._most:
            low = high = 0  # longer than the bounds: digits say nothing any more
        rests = tuple(divisor.reduced(rest * 10 + digit, 0) for rest, divisor in zip(state.rests, self._divisors, strict=True))
        return _State(False, seen, low, high, rests, at == 0 and digit == 0)

    def _whole(self, state: _State) -> tuple[int, int] | None:
        """How an integer part that ends here compares with those of the bounds; None when the number is out of them."""
        length = len(self._low[0])
        low = state.low if state.seen == length else _compare(state.seen, length)
        high = -1
        if self._high is not None:
            length = len(self._high[0])
            high = state.high if state.seen == length else _compare(state.seen, length)
        return None if state.seen == 0 or low < 0 or high > 0 else (low, high)

    def _point(self, state: _State) -> _State | None:
        sides = self._whole(state)
        hopeless = any(rest and divisor.divides and not divisor.places for rest, divisor in zip(state.rests, self._divisors, strict=True))
        room = EXACT_DIGITS - (0 if state.zero else state.seen) if self._is_exact else EXACT_DIGITS
        return None if sides is None or room <= 0 or hopeless else _State(True, 0, *sides, state.rests, room=room)

    def _fraction_digit(self, state: _State, digit: int) -> _State | None:
        at = state.seen
        low = state.low or _compare(digit, _place(self._low[1], at))
        high = state.high or (_compare(digit, _place(self._high[1], at)) if self._high is not None else -1)
        if low < 0 or high > 0 or state.room == 0:
            return None
        rests = tuple(_after_point(rest, divisor, digit, at) for rest, divisor in zip(state.rests, self._divisors, strict=True))
        if not all(divisor.can_divide(rest, at + 1) for rest, divisor in zip(rests, self._divisors, strict=True) if divisor.divides):
            return None
        return _State(True, min(at + 1, self._last_place(low, high)), low, high, rests, room=state.room - self._is_exact)

    def _last_place(self, low: int, high: int) -> int:
        """From there on, where digits stand in a fraction makes no difference: bounds that they equal so far have ended."""
        open_bounds = [bound for bound, side in ((self._low, low), (self._high, high)) if side == 0 and bound is not None]
        return max(self._most_places, 1, *(len(part) for _, part in open_bounds))

    def _accepts(self, state: _State) -> bool:
        sides: tuple[int, int] | None = (state.low, state.high)
        seen = state.seen if state.fraction else 0
        if not state.fraction:
            sides = self._whole(state)
        elif state.seen == 0:
            return False
        if sides is None or (sides[0] == 0 and any(self._low[1][seen:])):
            return False
        return all(_divides(rest, divisor, seen) == divisor.divides for rest, divisor in zip(state.rests, self._divisors, strict=True))


def _after_point(rest: int, divisor: _Divisor, digit: int, at: int) -> int:
    if rest == NEVER or at >= divisor.places:
        return NEVER if digit else rest
    return divisor.reduced(rest * 10 + digit, at + 1)


def _divides(rest: int, divisor: _Divisor, seen: int) -> bool:
    remainder: int = rest * 10 ** max(divisor.places - seen, 0) % divisor.of
    return rest != NEVER and remainder == 0


def _digits(value: Decimal) -> tuple[list[int], list[int]]:
    """Digits before and after the point."""
    text = f"{abs(value):f}"  # of a zero with a sign, too
    whole, _, part = text.partition(".")
    return [int(char) for char in whole.lstrip("0") or "0"], [int(char) for char in part.rstrip("0")]


def _scaled(step: Fraction, divides: bool) -> _Divisor:
    places = 0
    while (step * 10**places).denominator != 1:
        places += 1
    return _Divisor(int(step * 10**places), places, divides)


def _compare(one: int, other: int) -> int:
    return (one > other) - (one < other)


def _place(digits: list[int], at: int) -> int:
    return digits[at] if at < len(digits) else 0
