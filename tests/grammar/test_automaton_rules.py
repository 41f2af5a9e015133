"""Automata as rules: random ones, held against stepping through them, and how many rules numbers need."""

from __future__ import annotations

import json
import random
from itertools import product

import pytest

from ramet.grammar.arena import Arena
from ramet.grammar.automaton_rules import Ways, automaton_expression
from ramet.grammar.derivatives import Walker
from ramet.grammar.lowering import lower

LETTERS = "abc"


def random_automaton(rng: random.Random) -> dict[int, Ways[int]]:
    size = rng.randint(1, 7)
    found = {}
    for state in range(size):
        steps: dict[int, tuple[tuple[int, int], ...]] = {}
        for letter in rng.sample(LETTERS, rng.randint(0, 3)):
            to = rng.randrange(size)
            steps[to] = (*steps.get(to, ()), (ord(letter), ord(letter)))
        found[state] = Ways(rng.random() < 0.4, steps)
    return found


def accepts(ways: dict[int, Ways[int]], text: str) -> bool:
    state: int | None = 0
    for char in text:
        assert state is not None
        state = next((to for to, chars in ways[state].steps.items() if (ord(char), ord(char)) in chars), None)
        if state is None:
            return False
    assert state is not None
    return ways[state].may_end


@pytest.mark.parametrize("seed", range(150))
def test_the_rules_say_what_the_automaton_says(seed: int) -> None:
    ways = random_automaton(random.Random(seed))
    arena = Arena()
    start = automaton_expression(arena, ways, 0)
    walker = Walker(arena)
    found = {text: accepts(ways, text) for size in range(6) for text in map("".join, product(LETTERS, repeat=size))}
    assert {text: walker.matches(start, text.encode()) for text in found} == found
    shortest = [len(text) for text, is_one in found.items() if is_one]
    assert walker.is_empty(start) == (not shortest) and (not shortest or walker.shortest(start) == shortest[0])


def test_long_chains_of_alternatives_are_split_into_rules() -> None:
    """The engine reads some dozens of parentheses within each other."""
    ways = {state: Ways(True, {state + 1: ((97, 97),)}) for state in range(500)} | {500: Ways[int](True, {})}
    arena = Arena()
    start = automaton_expression(arena, ways, 0)
    assert 500 / 4 <= len(arena.rules) <= 500 / 2
    assert Walker(arena).matches(start, b"a" * 500) and not Walker(arena).matches(start, b"a" * 501)


@pytest.mark.parametrize(
    ("schema", "most"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 600, "multipleOf": 15}, 6),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, 16),
        ({"type": "number", "minimum": -3.5, "maximum": 99.5}, 12),
    ],
    ids=json.dumps,
)
def test_numbers_need_few_rules(schema: object, most: int) -> None:
    """Each costs the engine about 20 µs."""
    assert lower("json_schema", json.dumps(schema)).text.count("\nr") <= most
