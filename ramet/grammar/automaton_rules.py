"""A deterministic automaton over characters → right-linear rules, each character a lexeme. States after which the same may follow are one,
as far as they lie on no common circle, and states from which no text ends are left out: every rule costs the engine as much as a schema's
property does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from ramet.grammar.arena import EPSILON, NONE, Arena
from ramet.grammar.char_ranges import Ranges, union
from ramet.grammar.components import circles

State = TypeVar("State", bound=Hashable)
MAX_NESTED = 4
"""Alternatives within each other, until there is a rule of its own; the engine reads no more than some dozens."""
DEAD, UNKNOWN, ITSELF = -1, -2, -3
"""No number of a state: what leads to no end; what is still to be merged; where a state's own number would stand."""


class Ways(NamedTuple, Generic[State]):
    """Out of a state: whether the text may end here, and the characters that lead on, by where to. No character leads to two states."""

    may_end: bool
    steps: Mapping[State, Ranges]


def automaton_expression(arena: Arena, ways: Mapping[State, Ways[State]], start: State) -> int:
    """The texts that lead from `start` to an end."""
    number = {state: index for index, state in enumerate(ways)}
    states = [Ways(may_end, {number[to]: chars for to, chars in steps.items()}) for may_end, steps in ways.values()]
    of_state, merged = _merged(states)
    return NONE if of_state[number[start]] == DEAD else _Writer(arena, merged).expression(of_state[number[start]])


def _merged(states: list[Ways[int]]) -> tuple[list[int], list[Ways[int]]]:
    """Of each state the number of what it became, and these, those that they lead to first; on a circle in any order."""
    found = [UNKNOWN] * len(states)
    known: dict[Hashable, int] = {}
    representatives: list[int] = []
    for circle in circles(len(states), lambda state: states[state].steps):
        if not any(states[state].may_end or any(found[to] >= 0 for to in states[state].steps) for state in circle):
            for state in circle:
                found[state] = DEAD
            continue
        for state in circle:
            key = state if len(circle) > 1 else _key(state, states[state], found)
            if key not in known:
                known[key] = len(representatives)
                representatives.append(state)
            found[state] = known[key]
    return found, [Ways(states[state].may_end, _joined(states[state].steps, found)) for state in representatives]


def _key(state: int, ways: Ways[int], found: list[int]) -> Hashable:
    steps = _joined(ways.steps, {**{to: found[to] for to in ways.steps}, state: ITSELF})
    return ways.may_end, tuple(sorted(steps.items()))


def _joined(steps: Mapping[int, Ranges], found: Mapping[int, int] | list[int]) -> dict[int, Ranges]:
    """By what the states became."""
    joined: dict[int, Ranges] = {}
    for to, chars in steps.items():
        if found[to] != DEAD:
            joined[found[to]] = union((*joined.get(found[to], ()), *chars))
    return joined


class _Writer:
    def __init__(self, arena: Arena, states: list[Ways[int]]) -> None:
        self._arena = arena
        self._states = states
        self._uses = Counter(to for _, steps in states for to in steps)
        self._nesting = [0] * len(states)
        self._refs: dict[int, int] = {}
        self._written: dict[int, int] = {}

    def expression(self, start: int) -> int:
        for state in range(len(self._states)):
            self._written[state] = self._write(state)
        return self._written[start]

    def _write(self, state: int) -> int:
        arena, (may_end, steps) = self._arena, self._states[state]
        others = [arena.seq(self._lexeme(chars), self._after(to)) for to, chars in steps.items() if to != state]
        body = arena.alt([*others, EPSILON if may_end else NONE])
        if state in steps:
            body = arena.seq(arena.rep(self._lexeme(steps[state])), body)
        if state in self._refs:
            return arena.define(self._refs[state], body)
        self._nesting[state] = 1 + max((self._nesting[to] for to in steps), default=0)
        if not others or (self._uses[state] < 2 and self._nesting[state] < MAX_NESTED):
            return body
        self._nesting[state] = 0
        return arena.define(arena.new_rule(), body)

    def _after(self, state: int) -> int:
        """What may follow once it is come to. On a circle it is still to be written."""
        if state not in self._written and state not in self._refs:
            self._refs[state] = self._arena.new_rule()
        return self._refs.get(state, self._written.get(state, NONE))

    def _lexeme(self, chars: Ranges) -> int:
        return self._arena.lexeme(self._arena.chars(chars))
