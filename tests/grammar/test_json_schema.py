"""What a JSON schema lets through, judged by the jsonschema package: no false accept, no false reject, or a refusal with its place."""

from __future__ import annotations

import json
import random
from itertools import permutations, product
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import GrammarError
from ramet.grammar.arena import Arena
from ramet.grammar.derivatives import Walker
from ramet.grammar.json_layout import Layout
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import lower
from ramet.grammar.matcher import CompiledGrammar, Vocabulary
from ramet.grammar.schema_lowering import lower_schema
from tests.grammar.random_schemas import RandomSchemas
from tests.grammar.schema_cases import CASES, REFUSED, Case

COMPILER = LlguidanceCompiler(Vocabulary((*(bytes([byte]) for byte in range(256)), b""), frozenset({256}), (256,), 257))
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 5, 10, 1.5, -2.5, 0.25, 100),
    *("", "a", "ab", "abc", "x", "b1", "é", 'q"\\\n', "2024-02-29", "a@b.co", "red"),
    *([], [1], [1, 2], ["a"], ["a", "a"], [1, "a"], [1, 2, 3], [[1]], [None]),
    *(
        {},
        {"a": 1},
        {"a": "x"},
        {"a": 1, "b": 2},
        {"b": "x"},
        {"a": {"a": 1}},
        {"x": 1},
        {"a": 1, "b": 2, "c": 3},
        {"kind": "cat", "lives": 9},
    ),
)


def accepts(grammar: CompiledGrammar, text: str) -> bool:
    data = list(text.encode("utf-8"))
    matcher = grammar.matcher()
    return matcher.accept(data) == len(data) and matcher.complete


def written(value: Any, like: Any) -> str:
    """Compact JSON, properties in the order in which the schema declares them."""
    return json.dumps(ordered(value, like), ensure_ascii=False, separators=(",", ":"))


def ordered(value: Any, like: Any) -> Any:
    names = list(_names(like))
    if isinstance(value, dict):
        first = [name for name in dict.fromkeys(names) if name in value]
        return {name: ordered(value[name], like) for name in [*first, *(name for name in value if name not in names)]}
    return [ordered(item, like) for item in value] if isinstance(value, list) else value


def _names(schema: Any) -> Any:
    if isinstance(schema, dict):
        yield from (name for name in schema.get("properties", {}) if isinstance(schema.get("properties"), dict))
        yield from (name for name in schema.get("required", []) if isinstance(schema.get("required"), list))
        for child in schema.values():
            yield from _names(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from _names(child)


def walk_randomly(grammar: CompiledGrammar, walker: Walker, start: int, seed: int) -> str | None:
    """A text from the masks; towards its end the shortest way out."""
    rng, matcher, out = random.Random(seed), grammar.matcher(), b""
    row = np.zeros(9, np.uint32)
    for _ in range(120):
        matcher.fill_mask(row)
        choices = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
        if 256 in choices and (len(choices) == 1 or rng.random() < 0.4):
            return out.decode("utf-8")
        token = rng.choice([choice for choice in choices if choice != 256])
        matcher.accept([token])
        out += bytes([token])
    state = walker.walk(start, out)
    rest = walker.witness(state)
    assert matcher.accept(list(rest)) == len(rest) and matcher.complete, "the expression and the grammar differ"
    return (out + rest).decode("utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_keywords_decide_like_jsonschema(case: Case) -> None:
    lowered = lower("json_schema", json.dumps(case.schema))
    grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    judge = jsonschema.Draft202012Validator(case.schema, format_checker=jsonschema.FormatChecker())
    seen = set()
    for value in (*VALUES, *case.values):
        text, valid = written(value, case.schema), judge.is_valid(value)
        taken = accepts(grammar, text)
        assert taken == walker.matches(start, text.encode()), f"{text}: the expression and the grammar differ"
        assert (taken or in_other_order(walker, start, value)) == valid, f"{text}: jsonschema says {valid}"
        seen.add(valid)
    assert True in seen, "no value shows what is accepted"
    for seed in range(12):
        found = walk_randomly(grammar, walker, start, seed)
        judge.validate(json.loads(found or "null"))


@pytest.mark.parametrize(("schema", "where"), REFUSED, ids=lambda part: str(part)[:40])
def test_what_cannot_be_enforced_is_refused_with_its_place(schema: Any, where: str) -> None:
    with pytest.raises(GrammarError) as refused:
        lower("json_schema", json.dumps(schema))
    assert refused.value.where == where and refused.value.param == "json_schema"


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(GrammarError, match="half of a surrogate pair"):
        lower("json_schema", r'{"enum": ["\ud800"]}')


def test_what_has_too_many_states_is_refused_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.grammar.magnitude_automaton.MAX_STATES", 100)
    monkeypatch.setattr("ramet.grammar.derivatives.MAX_SEARCH", 200)
    patterns = {"type": "string", "allOf": [{"pattern": "^(a{23})*$"}, {"pattern": "^(a{19})*$"}, {"minLength": 1}]}
    for schema, where in (({"properties": {"n": {"type": "integer", "multipleOf": 101}}}, "/properties/n"), (patterns, "#")):
        with pytest.raises(GrammarError, match="states") as refused:
            lower("json_schema", json.dumps(schema))
        assert refused.value.where == where


# ── schemas from a generator ──

SCALARS = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size}, st.integers(-20, 20), st.integers(0, 30)),
    st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, st.sampled_from([0, -1.5, 2])),
    st.builds(lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size}, st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from(
        [{"pattern": "^a"}, {"type": "string", "pattern": "^[a-c]+$", "maxLength": 2}, {"enum": ["a", 1, None, {"a": 1}]}, {}, True]
    ),
    st.sampled_from([{"type": "integer", "multipleOf": 5}, {"type": ["string", "null"]}, {"const": "x"}]),
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b", "c"])
    objects = st.fixed_dictionaries(
        {"type": st.just("object"), "properties": st.dictionaries(names, inner, max_size=3)},
        optional={
            "required": st.lists(names, unique=True, max_size=2),
            "additionalProperties": st.one_of(st.booleans(), inner),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$", "x"]), inner, max_size=2),
            "maxProperties": st.integers(1, 3),
            "minProperties": st.integers(0, 2),
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(2, 3),
        },
    )
    several = st.lists(inner, min_size=1, max_size=2)
    return st.one_of(objects, arrays, st.fixed_dictionaries({"anyOf": several}), st.fixed_dictionaries({"allOf": several}))


SCHEMAS = st.recursive(SCALARS, _containers, max_leaves=6)
JSON = st.recursive(
    st.sampled_from([value for value in VALUES if not isinstance(value, list | dict)]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "c", "x", "ab"]), inner, max_size=3)),
    max_leaves=5,
)


@settings(deadline=None, max_examples=60)
@given(schema=SCHEMAS, values=st.lists(JSON, min_size=4, max_size=8), seed=st.integers(0, 1000))
def test_generated_schemas_decide_like_jsonschema(schema: Any, values: list[Any], seed: int) -> None:
    judge = jsonschema.Draft202012Validator(schema)
    try:
        lowered = lower("json_schema", json.dumps(schema))
    except GrammarError as error:
        assert "no text" in error.message or error.where, error
        assert "no text" not in error.message or not any(judge.is_valid(value) for value in (*VALUES, *values))
        return
    grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    for value in (*VALUES, *values):
        text = written(value, schema)
        if walker.matches(start, text.encode()) != judge.is_valid(value):
            assert in_other_order(walker, start, value) == judge.is_valid(value), text
    for turn in range(2):
        judge.validate(json.loads(walk_randomly(grammar, walker, start, seed + turn) or "null"))


@pytest.mark.parametrize("seed", range(3))
def test_keywords_inside_of_each_other_decide_like_jsonschema(seed: int) -> None:
    """The schemas nobody would write: overlapping oneOf under not under if, and so on. Most can be enforced."""
    random_schemas = RandomSchemas(seed)
    num_enforced = 0
    for _ in range(25):
        schema, values = random_schemas.schema(), random_schemas.values()
        judge = jsonschema.Draft202012Validator(schema)
        try:
            arena = Arena()
            start = lower_schema(arena, Layout(arena), schema)
        except GrammarError as error:
            assert error.where is not None
            continue
        walker, num_enforced = Walker(arena), num_enforced + 1
        for value in values:
            assert in_some_order(walker, start, value, schema) == judge.is_valid(value), (schema, value)
        if num_enforced % 8 == 0 and not walker.is_empty(start):
            grammar = COMPILER.assemble(lower("json_schema", json.dumps(schema)))
            judge.validate(json.loads(walk_randomly(grammar, walker, start, seed) or "null"))
    assert num_enforced >= 12


def in_some_order(walker: Walker, start: int, value: Any, schema: Any) -> bool:
    return walker.matches(start, written(value, schema).encode()) or in_other_order(walker, start, value)


def in_other_order(walker: Walker, start: int, value: Any) -> bool:
    """Whether some order of the properties is accepted: where alternatives declare the same names, `written` cannot know theirs."""
    return any(walker.matches(start, json.dumps(other, ensure_ascii=False, separators=(",", ":")).encode()) for other in orders(value))


def orders(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [list(items) for items in product(*map(orders, value))]
    if isinstance(value, dict):
        return [
            dict(zip(names, items, strict=True))
            for names in permutations(value)
            for items in product(*(orders(value[name]) for name in names))
        ]
    return [value]
