"""Items that must differ: what was there decides what may come, under tokens of any length, in time, taken back, forced or not."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.grammar.arena import Arena
from ramet.grammar.derivatives import Walker
from ramet.grammar.distinct_series import equal_texts
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import lower
from ramet.grammar.matcher import CompiledGrammar, Vocabulary
from tests.grammar.test_budget import COMPILER, EOS, SPACED, VOCABULARY, at_random, generate, longest, shortest

UNIQUE: dict[str, Any] = {"type": "array", "uniqueItems": True}
SMALL = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "strings": {**UNIQUE, "items": {"type": "string"}},
    "short strings": {**UNIQUE, "items": {"type": "string", "maxLength": 1}, "minItems": 3},
    "integers": {**UNIQUE, "items": {"type": "integer"}, "minItems": 2},
    "many values": {**UNIQUE, "items": {"enum": list(range(30, 60))}, "minItems": 4},
    "all of many values": {**UNIQUE, "items": {"enum": list(range(8, 20))}, "minItems": 12},
    "anything": UNIQUE,
    "few objects": {**UNIQUE, "items": SMALL, "minItems": 4},
    "nested": {**UNIQUE, "items": {**UNIQUE, "items": {"type": "integer"}, "minItems": 2}, "minItems": 2},
    "names": {"type": "object", "minProperties": 3, "additionalProperties": {"type": "null"}},
    "short names": {"type": "object", "minProperties": 2, "propertyNames": {"maxLength": 1}, "additionalProperties": {"type": "integer"}},
    "one of two": {
        "anyOf": [
            {"type": "object", "properties": {"k": {"const": 1}, "t": {**UNIQUE, "items": {"pattern": "^a+$", "type": "string"}}}},
            {"type": "object", "properties": {"k": {"const": 2}, "t": {"type": "array", "items": {"type": "string"}}}},
        ],
        "required": ["k", "t"],
        "maxProperties": 2,
    },
}
PLURAL = Vocabulary(
    (*VOCABULARY.token_bytes[:EOS], b"", b'","', b"1,1", b'["a","a', b"[[0,1],", b'":null,"a', b"},{", b'"],["'),
    frozenset({EOS}),
    (EOS,),
    320,
)
"""With tokens that end an item and go on."""


def choices(matcher: Any) -> list[int]:
    row = np.zeros(10, np.uint32)
    matcher.fill_mask(row)
    return [int(token) for token in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))]


@pytest.mark.parametrize("compiler", [COMPILER, SPACED], ids=["compact", "spaced"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_they_differ_and_end_in_time(compiler: LlguidanceCompiler, name: str) -> None:
    source = json.dumps(SCHEMAS[name])
    least = shortest(compiler, "json_schema", source)
    for budget in (least, least + 1, least + 25):
        for seed, choose in enumerate((at_random, at_random, longest)):
            text, complete = generate(compiler, VOCABULARY, "json_schema", source, budget, choose, budget + seed)
            assert complete, text
            jsonschema.Draft202012Validator(SCHEMAS[name]).validate(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_mask_allows_what_can_be_completed_and_no_other_token(name: str) -> None:
    """Of every token at random places: alone, not swept with the others. Of what is forced, one token."""
    compiler = LlguidanceCompiler(PLURAL)
    lowered = lower("json_schema", json.dumps(SCHEMAS[name]))
    grammar = compiler.assemble(lowered)
    walker, start, _ = lowered.read()
    rng = random.Random(name)
    for _ in range(3):
        matcher, text = grammar.matcher(), b""
        for _ in range(14):
            allowed = choices(matcher)
            for token in filter(PLURAL.token_bytes.__getitem__, range(len(PLURAL.token_bytes))):
                node = walker.walk(start, text + PLURAL.token_bytes[token])
                can_be_completed = node != 0 and not walker.is_empty(node)
                is_passed_over = can_be_completed and len(allowed) == 1
                assert (token in allowed) == can_be_completed or is_passed_over, (text, PLURAL.token_bytes[token])
            texts = [token for token in allowed if token != EOS and b" " not in PLURAL.token_bytes[token]]
            if not texts:
                break
            token = max(rng.sample(texts, min(3, len(texts))), key=lambda token: PLURAL.token_bytes[token][-1:] in b'",]}')
            assert matcher.accept([token]) == 1
            text += PLURAL.token_bytes[token]


def test_a_token_that_repeats_is_not_accepted_and_can_be_taken_back() -> None:
    matcher = COMPILER.compile("json_schema", json.dumps(SCHEMAS["strings"])).matcher()
    assert matcher.accept(list(b'["a","b","a')) == 11
    assert matcher.accept(list(b'"]')) == 0
    matcher.rollback(3)
    assert matcher.accept(list(b',"\\u0062"')) == 8
    matcher.rollback(1)
    assert matcher.accept(list(b'3"]')) == 3 and matcher.complete


def test_requests_know_nothing_of_each_other() -> None:
    grammar = COMPILER.compile("json_schema", json.dumps(SCHEMAS["integers"]))
    one, other = grammar.matcher(), grammar.matcher()
    assert one.accept(list(b"[1,")) == 3 and other.accept(list(b"[2,")) == 3
    assert one.accept(list(b"1]")) == 1 and other.accept(list(b"1]")) == 2
    assert one.accept(list(b"2]")) == 2


@pytest.mark.parametrize("name", ["many values", "few objects", "names", "one of two"])
def test_forced_tokens_change_nothing(name: str) -> None:
    compiler = LlguidanceCompiler(VOCABULARY, lambda text: list(text.encode()))
    grammar = compiler.compile("json_schema", json.dumps(SCHEMAS[name]))
    for seed in range(4):
        assert _greedy(grammar, seed, True) == _greedy(grammar, seed, False)


def _greedy(grammar: CompiledGrammar, seed: int, is_forced: bool) -> list[int]:
    """The allowed token that a fixed preference puts first; `is_forced`: forced tokens are taken without being asked."""
    preference = random.Random(seed).sample(range(EOS + 1), EOS + 1)
    matcher, found = grammar.matcher(60), list[int]()
    while len(found) < 60 and EOS not in found:
        forced = matcher.forced_tokens() if is_forced else []
        taken = forced or [min(choices(matcher), key=preference.__getitem__)]
        assert matcher.accept(taken) == len(taken)
        found += taken
    return found


def test_in_structural_tags_they_differ_too() -> None:
    structure = {"begin": "<f>", "schema": {"type": "object", "properties": {"t": SCHEMAS["strings"]}, "required": ["t"]}, "end": "</f>"}
    grammar = COMPILER.compile("structural_tag", json.dumps({"triggers": ["<f"], "structures": [structure]}))
    text = b'so <f>{"t":["a","a"]}</f>'
    assert grammar.matcher().accept(list(text)) == text.index(b'"]}')
    text = b'so <f>{"t":["a","b"]}</f> and <f>{"t":["a"]}</f>.'
    matcher = grammar.matcher()
    assert matcher.accept(list(text)) == len(text) and matcher.complete


def test_other_grammars_are_not_guarded() -> None:
    for schema in ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, {"type": "object", "minProperties": 1}):
        assert not lower("json_schema", json.dumps(schema)).is_guarded
    assert lower("json_schema", json.dumps(UNIQUE)).is_guarded


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(-1e3, 1e3).map(lambda value: round(value, 3)), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=4,
)


@settings(deadline=None, max_examples=60)
@given(one=JSON, other=JSON)
def test_equal_texts_are_of_equal_values(one: Any, other: Any) -> None:
    arena = Arena()
    same = equal_texts(arena, json.dumps(one).encode(), 1)
    walker = Walker(arena)
    assert walker.matches(same, json.dumps(one, ensure_ascii=False, separators=(",", ":")).encode())
    is_equal = not list(jsonschema.Draft202012Validator({"const": one}).iter_errors(other))
    if not is_equal:
        assert not walker.matches(same, json.dumps(other, separators=(",", ":")).encode())
