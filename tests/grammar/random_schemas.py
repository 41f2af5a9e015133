"""Schemas at random, every keyword inside of every other, and values that are near to what they ask for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

NAMES = ("a", "b", "c", "ab")
TYPES = ("null", "boolean", "number", "integer", "string", "array", "object")
SIMPLE_VALUES: tuple[Any, ...] = (None, True, False, 0, 1, 2, 3, -1, 1.5, 0.5, "", "a", "b", "ab", "ba", "x")
CONTAINERS: tuple[Any, ...] = (
    *([], [1], [1, 1], ["a"], ["a", 1], [1, 2], [1, 2, 3], [None], [[1]], [True, 1], ["a", "b", "a"]),
    *({}, {"a": 1}, {"a": "a"}, {"b": 1}, {"a": 1, "b": 2}, {"c": 3}, {"a": 1, "b": 2, "c": 3}, {"ab": 1}, {"x": 1}),
    *({"a": {"a": 1}}, {"a": None, "x": "b"}, {"x": 1, "y": 2}, {"b": "b", "ab": 2}, {"xb": 2, "ax": 1}),
)
GIVEN = (1, 2, "a", "b", None, True, [1], {"a": 1}, [], {}, 1.5)
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "maxProperties")


class RandomSchemas:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def schema(self, depth: int = 3) -> Any:
        rng = self._rng
        if depth == 0 or rng.random() < 0.25:
            return self._simple()
        found: dict[str, Any] = {}
        for _ in range(rng.randint(1, 3)):
            part = self._simple() if rng.random() < 0.2 else self._applied(lambda: self.schema(depth - 1), depth == 3)
            found |= part if isinstance(part, dict) else {}
        return found

    def values(self) -> list[Any]:
        return [*SIMPLE_VALUES, *CONTAINERS, *(self._value(2) for _ in range(12))]

    def _simple(self) -> Any:
        rng = self._rng
        makers: tuple[Callable[[], Any], ...] = (
            lambda: {"type": rng.choice(TYPES)},
            lambda: {"type": rng.sample(TYPES, 2)},
            lambda: {rng.choice(BOUNDS): rng.choice([0, 1, 2, -1, 1.5])},
            lambda: {"multipleOf": rng.choice([1, 2, 3, 0.5, 1.5])},
            lambda: {rng.choice(COUNTS): rng.choice([0, 1, 2])},
            lambda: {"minProperties": rng.choice([0, 1, 2])},
            lambda: {"pattern": rng.choice(["^a", "b$", "^[ab]+$", "a"])},
            lambda: {"enum": rng.sample(GIVEN, rng.randint(1, 3))},
            lambda: {"const": rng.choice(GIVEN)},
            lambda: {"required": rng.sample(NAMES, rng.randint(1, 2))},
            lambda: rng.choice([True, False, {}]),
            lambda: {"uniqueItems": True, "items": {"enum": rng.sample([1, 2, "a", True], 2)}},
            lambda: {"uniqueItems": True},
            lambda: {"dependentRequired": {rng.choice(NAMES): rng.sample(NAMES, 1)}},
        )
        return rng.choice(makers)()

    def _applied(self, inner: Callable[[], Any], is_outermost: bool) -> dict[str, Any]:
        rng = self._rng
        makers: list[Callable[[], dict[str, Any]]] = [
            lambda: {rng.choice(["allOf", "anyOf", "oneOf"]): [inner() for _ in range(rng.randint(1, 3))]},
            lambda: {"oneOf": [inner(), inner()]},
            lambda: {"not": inner()},
            lambda: {"if": inner(), "then": inner()} | ({"else": inner()} if rng.random() < 0.5 else {}),
            lambda: {"properties": {name: inner() for name in rng.sample(NAMES, rng.randint(1, 2))}},
            lambda: {"patternProperties": {rng.choice(["^a", "b$"]): inner()}},
            lambda: {rng.choice(["additionalProperties", "propertyNames"]): inner()},
            lambda: {"items": inner()},
            lambda: {"prefixItems": [inner() for _ in range(rng.randint(1, 2))]},
            lambda: {"contains": inner()} | {key: rng.randint(0, 2) for key in ("minContains", "maxContains") if rng.random() < 0.5},
            lambda: {"dependentSchemas": {rng.choice(NAMES): inner()}},
        ]
        if is_outermost:
            makers += [
                lambda: {"unevaluatedProperties": rng.choice([False, inner()])},
                lambda: {"unevaluatedItems": rng.choice([False, inner()])},
            ]
        return rng.choice(makers)()

    def _value(self, depth: int) -> Any:
        rng = self._rng
        kind = rng.random()
        if depth == 0 or kind < 0.5:
            return rng.choice(SIMPLE_VALUES)
        if kind < 0.75:
            return [self._value(depth - 1) for _ in range(rng.randint(0, 3))]
        return {name: self._value(depth - 1) for name in rng.sample([*NAMES, "x"], rng.randint(0, 3))}
