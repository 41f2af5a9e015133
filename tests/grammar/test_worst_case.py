"""Bounds on endings, held against the endings of the places that random walks come to."""

from __future__ import annotations

import json
import random

import pytest

from ramet.grammar.arena import INFINITE
from ramet.grammar.lowering import lower

LENGTHS = (2, 4, 9, 20)
PATTERNS = ("^(ab|c{5}d*)+$", "^(aé)*x?$", "^a{0,9}b{3}|c$", r"\d\d", "^(?:abcdefgh|a)*(?:xyzw|q)$", r'^["\\\n]*z$', "^😀+a$")
SCHEMAS = [
    {"type": "string", "format": "hostname"},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-c]+$", "maxLength": 3}, "b": {"type": "number"}}},
    {"type": "array", "items": {"type": "string", "pattern": "x", "minLength": 3, "maxLength": 5}, "minItems": 2, "maxItems": 4},
    {"type": "object", "properties": {"next": {"$ref": "#"}}},
    *({"type": "string", "pattern": pattern, "maxLength": length} for pattern in PATTERNS for length in LENGTHS),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_no_place_needs_a_longer_ending_than_its_bound(schema: object) -> None:
    language = lower("json_schema", json.dumps(schema)).read()
    walker, rng = language.walker, random.Random(0)
    for _ in range(12):
        place, bound = language.start, INFINITE
        for _ in range(60):
            bound = min(bound, language.endings.of(place))  # of a place holds for all that it leads to
            assert walker.shortest(place) <= bound
            following = [walker.step(place, byte) for byte in walker.representatives(place)]
            following = [node for node in following if not walker.is_empty(node)]
            if not following:
                break
            place = rng.choice(following)


def test_a_pattern_beside_a_greatest_length_has_a_bound_without_a_search() -> None:
    assert lower("json_schema", '{"type": "string", "format": "hostname"}').worst < 500
    nested = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": []}
    assert lower("json_schema", json.dumps(nested)).worst == INFINITE
