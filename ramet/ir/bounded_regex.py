"""Python's regular expressions with a bound on work: a backtracking matcher that counts its steps.

The standard engine cannot be interrupted and takes exponential time on patterns that a hostile program is free to choose. This one
walks the standard parser's tree, gives the same answers, and stops at `MAX_STEPS`. Where pattern and text are such that the standard
engine cannot take long either, it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# The parser is the only source of the language's exact syntax; its module has been private by name since 3.11.
from re import _constants as c  # isort: skip
from re import _parser as parser  # isort: skip

MAX_STEPS = 50_000
MAX_PATTERN = 2_000
MAX_WAYS = 1_000_000  # comparisons of the standard engine: a few milliseconds
MAX_FLAT_REPEATS = 4
Groups = dict[int, tuple[int, int]]
Then = Callable[[int, Groups], "Found"]
Found = tuple[int, Groups] | None
Match = list[str | None]


class TooMuchWork(Exception):
    """The match was stopped at its bound."""


def find(pattern: str, text: str, mode: str) -> Match | None:
    """`mode` is fullmatch, match or search. A match is [whole, group 1, …]."""
    if len(pattern) <= MAX_PATTERN and (flat := _flat(pattern)) is not None and flat.num_ways(len(text)) <= MAX_WAYS:
        hit = getattr(flat.standard, mode)(text)
        return None if hit is None else [hit.group()]
    span = Matcher(pattern, text).find(0, mode)
    return None if span is None else span[1]


def find_all(pattern: str, text: str) -> list[tuple[tuple[int, int], Match]]:
    """Non-overlapping matches, left to right, with their spans."""
    matcher, place, barred, found = Matcher(pattern, text), 0, -1, []
    while (hit := matcher.find(place, "search", barred)) is not None:
        found.append(hit)
        start, place = hit[0]
        barred = place if start == place else -1  # after an empty match, one that is not empty may begin at the same place
    return found


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> Any:
    """The standard parser's tree, which nobody changes."""
    return parser.parse(pattern)


@dataclass(frozen=True, slots=True)
class FlatPattern:
    """Characters one after the other, `num_repeats` of them repeated, no groups and no choices."""

    standard: re.Pattern[str]
    num_repeats: int

    def num_ways(self, length: int) -> int:
        """At most so many comparisons: every repeat may end at every place, and a search begin at every place."""
        return int(len(self.standard.pattern) * (length + 1) ** (self.num_repeats + 1))


@lru_cache(maxsize=256)
def _flat(pattern: str) -> FlatPattern | None:
    items = list(_parsed(pattern))
    repeats = [arg for op, arg in items if op in (c.MAX_REPEAT, c.MIN_REPEAT)]
    plain = all(op in (*_SINGLE, c.AT, c.MAX_REPEAT, c.MIN_REPEAT) for op, _ in items)
    if not plain or len(repeats) > MAX_FLAT_REPEATS or any(len(inner) != 1 or inner[0][0] not in _SINGLE for _, _, inner in repeats):
        return None
    return FlatPattern(re.compile(pattern), len(repeats))


class Matcher:
    def __init__(self, pattern: str, text: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise TooMuchWork(f"a pattern of {len(pattern)} characters; at most {MAX_PATTERN}")
        self._tree = _parsed(pattern)
        self._text = text
        self._steps = 0
        flags = self._tree.state.flags
        self._ignore_case = bool(flags & re.IGNORECASE)
        self._dot_all = bool(flags & re.DOTALL)
        self._multiline = bool(flags & re.MULTILINE)

    def find(self, start: int, mode: str, barred: int = -1) -> tuple[tuple[int, int], Match] | None:
        """No empty match is accepted at `barred`."""

        def accept(place: int, groups: Groups) -> Found:
            refused = (mode == "fullmatch" and place != len(self._text)) or place == begin == barred
            return None if refused else (place, groups)

        for begin in range(start, len(self._text) + 1) if mode == "search" else [start]:
            try:
                hit = self._sequence(list(self._tree), 0, begin, {}, accept)
            except RecursionError:
                raise TooMuchWork("the match nests too deeply") from None
            if hit is not None:
                end, groups = hit
                spans = [groups.get(number) for number in range(1, self._tree.state.groups)]
                return (begin, end), [self._text[begin:end], *(None if s is None else self._text[s[0] : s[1]] for s in spans)]
        return None

    def _sequence(self, items: Sequence[Any], index: int, place: int, groups: Groups, then: Then) -> Found:
        while index < len(items) and items[index][0] in _SINGLE:
            if not self._single(items[index], place):
                return None
            index, place = index + 1, place + 1
        if index == len(items):
            return then(place, groups)
        op, arg = items[index]
        return self._item(op, arg, place, groups, lambda p, g: self._sequence(items, index + 1, p, g, then))

    def _item(self, op: Any, arg: Any, place: int, groups: Groups, then: Then) -> Found:
        self._step()
        if op in (c.MAX_REPEAT, c.MIN_REPEAT):
            return self._repeat(op is c.MAX_REPEAT, arg, place, groups, then)
        if op is c.BRANCH:
            hits = (self._sequence(list(branch), 0, place, groups, then) for branch in arg[1])
            return next((hit for hit in hits if hit is not None), None)
        if op is c.SUBPATTERN:
            return self._subpattern(arg, place, groups, then)
        if op is c.AT:
            return then(place, groups) if self._at(arg, place) else None
        if op is c.GROUPREF:
            return self._reference(arg, place, groups, then)
        if op in (c.ASSERT, c.ASSERT_NOT) and arg[0] > 0:
            hit = self._sequence(list(arg[1]), 0, place, groups, lambda p, g: (p, g))
            if op is c.ASSERT_NOT:
                return then(place, groups) if hit is None else None
            return then(place, hit[1]) if hit is not None else None
        raise re.error(f"{str(op).lower()} is not supported in programs")

    def _subpattern(self, arg: Any, place: int, groups: Groups, then: Then) -> Found:
        number, added, removed, items = arg
        if added or removed:
            raise re.error("flags inside a group are not supported in programs")
        if number is None:
            return self._sequence(list(items), 0, place, groups, then)
        return self._sequence(list(items), 0, place, groups, lambda p, g: then(p, {**g, number: (place, p)}))

    def _reference(self, number: int, place: int, groups: Groups, then: Then) -> Found:
        if number not in groups:
            return None
        start, end = groups[number]
        known = self._text[start:end]
        return then(place + len(known), groups) if self._text.startswith(known, place) else None

    def _repeat(self, greedy: bool, arg: Any, place: int, groups: Groups, then: Then) -> Found:
        least, most, items = arg
        most = len(self._text) + 1 if most is c.MAXREPEAT else most
        if len(items) == 1 and items[0][0] in _SINGLE:
            return self._repeat_single(greedy, least, most, items[0], place, groups, then)
        return self._repeat_group(greedy, least, most, list(items), place, groups, then)

    def _repeat_single(self, greedy: bool, least: int, most: int, item: Any, place: int, groups: Groups, then: Then) -> Found:
        longest = 0
        while longest < most and self._single(item, place + longest):
            longest += 1
        for count in range(longest, least - 1, -1) if greedy else range(least, longest + 1):
            self._step()
            hit = then(place + count, groups)
            if hit is not None:
                return hit
        return None

    def _repeat_group(self, greedy: bool, least: int, most: int, items: list[Any], place: int, groups: Groups, then: Then) -> Found:
        def again(done: int, here: int, known: Groups) -> Found:
            def more() -> Found:
                if done >= most:
                    return None
                # An empty round past the minimum would repeat for ever; the standard engine leaves the loop there too.
                return self._sequence(items, 0, here, known, lambda p, g: again(done + 1, p, g) if p > here or done < least else None)

            self._step()
            if done < least:
                return more()
            if greedy:
                return more() or then(here, known)
            return then(here, known) or more()

        return again(0, place, groups)

    def _single(self, item: Any, place: int) -> bool:
        self._step()
        if place >= len(self._text):
            return False
        char = self._text[place]
        op, arg = item
        if op is c.ANY:
            return self._dot_all or char != "\n"
        variants = {char, char.lower(), char.upper()} if self._ignore_case else {char}
        if op is c.LITERAL:
            return any(ord(each) == arg for each in variants if len(each) == 1)
        if op is c.NOT_LITERAL:
            return all(ord(each) != arg for each in variants if len(each) == 1)
        return _in_class(arg, variants)

    def _at(self, where: Any, place: int) -> bool:
        text = self._text
        if where in (c.AT_BEGINNING, c.AT_BEGINNING_STRING):
            return place == 0 or (where is c.AT_BEGINNING and self._multiline and text[place - 1] == "\n")
        if where is c.AT_END_STRING:
            return place == len(text)
        if where is c.AT_END:
            return place == len(text) or (text[place] == "\n" and (self._multiline or place == len(text) - 1))
        border = _is_word(text[place - 1 : place]) != _is_word(text[place : place + 1])
        return border if where is c.AT_BOUNDARY else not border

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TooMuchWork(f"the match was stopped after {MAX_STEPS} steps; simplify the pattern")


_SINGLE = (c.LITERAL, c.NOT_LITERAL, c.ANY, c.IN)


def _in_class(items: Sequence[Any], chars: set[str]) -> bool:
    negated = bool(items) and items[0][0] is c.NEGATE
    hit = any(_in_item(op, arg, char) for op, arg in items if op is not c.NEGATE for char in chars if len(char) == 1)
    return hit != negated


def _in_item(op: Any, arg: Any, char: str) -> bool:
    if op is c.LITERAL:
        return bool(ord(char) == arg)
    if op is c.RANGE:
        return bool(arg[0] <= ord(char) <= arg[1])
    test = {
        c.CATEGORY_DIGIT: str.isdecimal(char),
        c.CATEGORY_SPACE: str.isspace(char),
        c.CATEGORY_WORD: _is_word(char),
    }
    if arg in test:
        return test[arg]
    opposite = {c.CATEGORY_NOT_DIGIT: c.CATEGORY_DIGIT, c.CATEGORY_NOT_SPACE: c.CATEGORY_SPACE, c.CATEGORY_NOT_WORD: c.CATEGORY_WORD}
    return not test[opposite[arg]]


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"
