"""JSON numbers within bounds, and multiples, as right-linear rules: from the left, with what is known about the bounds so far."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from ramet.errors import GrammarError
from ramet.grammar.arena import EPSILON, Arena

MAX_STATES = 5000


class NumberSet(NamedTuple):
    """Numbers from `low` to `high` (both in it) that `step`, if given, divides. Written without exponent if there is a bound or a step."""

    integer: bool
    low: Decimal | None = None
    high: Decimal | None = None
    step: Fraction | None = None


def number_expression(arena: Arena, numbers: NumberSet) -> int:
    """Each character is a lexeme of its own: were whole numbers lexemes, the longest match of one alternative would hide another's."""
    low, high = numbers.low, numbers.high
    if high is None and numbers.step is None and low in (None, 0):
        return _unbounded(arena, numbers.integer, signed=low is None)
    zero, parts = Decimal(0), []
    if high is None or high >= 0:
        parts.append(_Magnitudes(arena, numbers, max(low or zero, zero), high).expression())
    if low is None or low < 0:
        negative = _Magnitudes(arena, numbers, max(-(high or zero), zero), None if low is None else -low).expression()
        parts.append(arena.seq(arena.lexeme(arena.text("-")), negative))
    return arena.alt(parts)


def literal_number(arena: Arena, text: str) -> int:
    return arena.seq(*[arena.lexeme(arena.text(char)) for char in text])


def _unbounded(arena: Arena, integer: bool, signed: bool) -> int:
    def one(low: str, high: str) -> int:
        return arena.lexeme(arena.chars(((ord(low), ord(high)),)))

    digits, sign = arena.rep(one("0", "9")), arena.lexeme(arena.text("-"))
    whole = arena.alt((one("0", "0"), arena.seq(one("1", "9"), digits)))
    if integer:
        return arena.seq(arena.optional(sign) if signed else EPSILON, whole)
    fraction = arena.optional(arena.seq(one(".", "."), one("0", "9"), digits))
    if not signed:
        return arena.seq(whole, fraction)
    signs = arena.optional(arena.lexeme(arena.chars(((0x2B, 0x2B), (0x2D, 0x2D)))))
    power = arena.alt((arena.seq(one("0", "9"), arena.optional(one("0", "9"))), arena.seq(one("1", "2"), one("0", "9"), one("0", "9"))))
    exponent = arena.optional(arena.seq(arena.lexeme(arena.chars(((0x45, 0x45), (0x65, 0x65)))), signs, power))
    return arena.seq(arena.optional(sign), whole, fraction, exponent)


class _State(NamedTuple):
    """After `seen` digits of the integer part (or the fraction): how they compare with the bounds' digits, and the remainder."""

    fraction: bool
    seen: int
    low: int
    high: int
    rest: int
    zero: bool = False  # the integer part is 0: no digit may follow


class _Magnitudes:
    """Numbers without sign between two bounds."""

    def __init__(self, arena: Arena, numbers: NumberSet, low: Decimal, high: Decimal | None) -> None:
        self._arena = arena
        self._integer = numbers.integer
        self._low = _digits(low)
        self._high = None if high is None else _digits(high)
        self._step, self._places = _scaled(numbers.step)
        bounds = [self._low] if self._high is None else [self._low, self._high]
        self._most = max(len(whole) for whole, _ in bounds) + 1
        self._most_places = max(max(len(part) for _, part in bounds), self._places) + 1
        self._rules: dict[_State, int] = {}

    def expression(self) -> int:
        start = _State(False, 0, 0, 0, 0)
        self._rules[start] = self._arena.new_rule()
        queue = [start]
        while queue:
            state = queue.pop()
            if len(self._rules) > MAX_STATES:
                raise GrammarError(f"numbers with these bounds and multipleOf need more than {MAX_STATES} states; use smaller ones")
            self._arena.define(self._rules[state], self._arena.alt(self._body(state, queue)))
        return self._rules[start]

    def _body(self, state: _State, queue: list[_State]) -> Iterator[int]:
        digits: dict[_State, list[int]] = {}
        for digit in range(10):
            following = self._fraction_digit(state, digit) if state.fraction else self._whole_digit(state, digit)
            if following is not None:
                digits.setdefault(following, []).append(digit)
        for following, values in digits.items():
            chars = self._arena.chars(tuple((48 + value, 48 + value) for value in values))
            yield self._arena.seq(self._arena.lexeme(chars), self._rule(following, queue))
        point = None if state.fraction or self._integer else self._point(state)
        if point is not None:
            yield self._arena.seq(self._arena.lexeme(self._arena.text(".")), self._rule(point, queue))
        if self._accepts(state):
            yield EPSILON

    def _rule(self, state: _State, queue: list[_State]) -> int:
        if state not in self._rules:
            self._rules[state] = self._arena.new_rule()
            queue.append(state)
        return self._rules[state]

    def _whole_digit(self, state: _State, digit: int) -> _State | None:
        at = state.seen
        if state.zero or (self._high is not None and at >= len(self._high[0])):
            return None
        low = state.low or (_compare(digit, self._low[0][at]) if at < len(self._low[0]) else 0)
        high = state.high or (_compare(digit, self._high[0][at]) if self._high is not None else 0)
        seen = min(at + 1, self._most)
        if seen == self._most:
            low = high = 0  # longer than the bounds: digits say nothing any more
        return _State(False, seen, low, high, (state.rest * 10 + digit) % self._step, at == 0 and digit == 0)

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
        return None if sides is None else _State(True, 0, *sides, state.rest)

    def _fraction_digit(self, state: _State, digit: int) -> _State | None:
        at = state.seen
        low = state.low or _compare(digit, _place(self._low[1], at))
        high = state.high or (_compare(digit, _place(self._high[1], at)) if self._high is not None else -1)
        if low < 0 or high > 0:
            return None
        rest = state.rest
        if self._step > 1 or self._places:
            if at >= self._places and digit:
                return None
            rest = (rest * 10 + digit) % self._step if at < self._places else rest
        return _State(True, min(at + 1, self._most_places), low, high, rest)

    def _accepts(self, state: _State) -> bool:
        sides: tuple[int, int] | None = (state.low, state.high)
        seen = state.seen if state.fraction else 0
        if not state.fraction:
            sides = self._whole(state)
        elif state.seen == 0:
            return False
        if sides is None or (sides[0] == 0 and any(self._low[1][seen:])):
            return False
        left = max(self._places - seen, 0)
        rest: int = state.rest * 10**left % self._step
        return rest == 0


def _digits(value: Decimal) -> tuple[list[int], list[int]]:
    """Digits before and after the point."""
    text = f"{value:f}"
    whole, _, part = text.partition(".")
    return [int(char) for char in whole.lstrip("0") or "0"], [int(char) for char in part.rstrip("0")]


def _scaled(step: Fraction | None) -> tuple[int, int]:
    """(m, k) with step = m / 10^k: the number times 10^k must be a multiple of m."""
    if step is None:
        return 1, 0
    places = 0
    while (step * 10**places).denominator != 1:
        places += 1
    return int(step * 10**places), places


def _compare(one: int, other: int) -> int:
    return (one > other) - (one < other)


def _place(digits: list[int], at: int) -> int:
    return digits[at] if at < len(digits) else 0
