"""With a budget, every output is complete and valid if the grammar allows it at all, whatever tokens are chosen."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.grammar.arena import Arena
from ramet.grammar.derivatives import Walker
from ramet.grammar.json_layout import ANY_WHITESPACE
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import lower
from ramet.grammar.matcher import Vocabulary
from tests.grammar.schema_cases import CASES

EOS = 300
WORDS = [
    b'{"',
    b'":',
    b',"',
    b'"}',
    b"],",
    b"[[[[",
    b"aa",
    b"aaaaaaaa",
    b"        ",
    b"\n\n",
    b"true",
    b"null",
    b"12",
    b"\xc3\xa9",
    b"\\\\\\\\",
    b"00",
]
PIECES = (*(bytes([byte]) for byte in range(256)), *WORDS)
VOCABULARY = Vocabulary((*PIECES, *[b""] * (EOS + 1 - len(PIECES))), frozenset({EOS}), (EOS,), 320)
COMPILER = LlguidanceCompiler(VOCABULARY)
SPACED = LlguidanceCompiler(VOCABULARY, whitespace=ANY_WHITESPACE)
TREE: Any = {
    "$ref": "#/$defs/t",
    "$defs": {
        "t": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 2},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 3},
            },
            "required": ["name", "kids"],
            "additionalProperties": False,
        }
    },
}
Choose = Callable[[list[int], tuple[bytes, ...], random.Random], int]


def at_random(choices: list[int], pieces: tuple[bytes, ...], rng: random.Random) -> int:
    return rng.choice(choices)


def longest(choices: list[int], pieces: tuple[bytes, ...], rng: random.Random) -> int:
    return max(choices, key=lambda token: (len(pieces[token]), token))


def blank(choices: list[int], pieces: tuple[bytes, ...], rng: random.Random) -> int:
    return max(choices, key=lambda token: (pieces[token].isspace(), pieces[token][:1] in b'[{",-a\\', rng.random()))


def generate(
    compiler: LlguidanceCompiler, vocabulary: Vocabulary, kind: str, source: str, budget: int, choose: Choose, seed: int
) -> tuple[str, bool]:
    """Text of `budget` tokens at most, and whether the grammar calls it complete. An end is taken only where nothing else may come."""
    rng, matcher, out = random.Random(seed), compiler.compile(kind, source).matcher(budget), b""
    row = np.zeros(-(-vocabulary.size // 32), np.uint32)
    for _ in range(budget):
        matcher.fill_mask(row)
        choices = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
        texts = [token for token in choices if token not in vocabulary.eos_ids]
        if not texts:
            break
        token = choose(texts, vocabulary.token_bytes, rng)
        assert matcher.accept([token]) == 1
        out += vocabulary.token_bytes[token]
    return out.decode("utf-8", "replace"), matcher.complete


def shortest(compiler: LlguidanceCompiler, kind: str, source: str) -> int:
    """Tokens of a shortest text."""
    language = lower(kind, source).read()
    return len(compiler._spelling.spell(language.walker.witness(language.start)))


@pytest.mark.parametrize("choose", [at_random, longest, blank])
@pytest.mark.parametrize("case", [case for case in CASES if isinstance(case.schema, dict)][::2], ids=lambda case: case.name)
def test_schemas_end_in_time(case: Any, choose: Choose) -> None:
    source = json.dumps(case.schema)
    least = shortest(COMPILER, "json_schema", source)
    for budget in (least, least + 1, least + 7, least + 30):
        text, complete = generate(COMPILER, VOCABULARY, "json_schema", source, budget, choose, budget)
        assert complete, text
        jsonschema.Draft202012Validator(case.schema).validate(json.loads(text))


@pytest.mark.parametrize("compiler", [COMPILER, SPACED], ids=["compact", "spaced"])
@pytest.mark.parametrize("choose", [at_random, longest, blank])
def test_recursive_schemas_end_in_time(compiler: LlguidanceCompiler, choose: Choose) -> None:
    source = json.dumps(TREE)
    least = shortest(compiler, "json_schema", source)
    for budget in (least, least + 3, least + 20, least + 60):
        text, complete = generate(compiler, VOCABULARY, "json_schema", source, budget, choose, budget)
        assert complete, text
        jsonschema.Draft202012Validator(TREE).validate(json.loads(text))


@settings(deadline=None, max_examples=40)
@given(
    source=st.sampled_from([r"a{3,200}b", r"(?:ab|c[^x]{5}d)*e{2}", r"[^z]{4}.*y", r"(?:\d{3}-){1,50}\d", r"(?:a|b.{9})+"]),
    extra=st.integers(0, 25),
    seed=st.integers(0, 999),
)
def test_regexes_end_in_time(source: str, extra: int, seed: int) -> None:
    budget = shortest(COMPILER, "regex", source) + extra
    for choose in (at_random, longest):
        text, complete = generate(COMPILER, VOCABULARY, "regex", source, budget, choose, seed)
        assert complete and re.fullmatch(source, text), text


def test_structural_tags_end_in_time() -> None:
    structure = {"begin": "<f=add>", "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 3}, "end": "</f>"}
    source = json.dumps({"triggers": ["<f="], "structures": [structure]})
    opening = [*b"so <f=", *b"add>["]
    for budget in range(len(opening) + 10, len(opening) + 40, 3):
        matcher = COMPILER.compile("structural_tag", source).matcher(budget)
        assert matcher.accept(opening) == len(opening)
        row = np.zeros(10, np.uint32)
        for _ in range(budget - len(opening)):
            matcher.fill_mask(row)
            choices = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
            texts = [token for token in choices if token != EOS]
            assert matcher.accept([longest(texts, VOCABULARY.token_bytes, random.Random(0))]) == 1
        assert matcher.complete


def test_with_enough_left_the_mask_is_the_grammars_own() -> None:
    source = json.dumps(TREE["$defs"]["t"]["properties"]["name"])
    grammar = COMPILER.compile("json_schema", source)
    free, bounded = grammar.matcher(), grammar.matcher(500)
    for byte in b'"abc':
        rows = np.zeros((2, 10), np.uint32)
        free.fill_mask(rows[0])
        bounded.fill_mask(rows[1])
        assert (rows[0] == rows[1]).all()
        assert free.accept([byte]) == bounded.accept([byte]) == 1


def test_without_a_budget_nothing_is_steered_and_the_switch_turns_it_off() -> None:
    source = json.dumps({"type": "string"})
    for matcher in (
        COMPILER.compile("json_schema", source).matcher(),
        LlguidanceCompiler(VOCABULARY, bounded=False).compile("json_schema", source).matcher(4),
    ):
        row = np.zeros(10, np.uint32)
        for _ in range(6):
            matcher.fill_mask(row)
            assert matcher.accept([ord('"') if not matcher.accept([ord("a")]) else ord("b")]) == 1
        assert not matcher.complete


def test_what_is_taken_back_is_given_back() -> None:
    matcher = COMPILER.compile("regex", "a*b").matcher(3)
    row, again = np.zeros(10, np.uint32), np.zeros(10, np.uint32)
    matcher.fill_mask(row)
    assert matcher.accept([ord("a"), ord("a")]) == 2
    matcher.fill_mask(again)
    assert not again[97 >> 5] & (1 << (97 & 31)) and again[98 >> 5] & (1 << (98 & 31))
    matcher.rollback(2)
    matcher.fill_mask(again)
    assert (row == again).all()


@pytest.mark.model
@pytest.mark.parametrize("choose", [at_random, longest, blank])
def test_the_real_vocabulary_ends_in_time(tmp_path: Path, choose: Choose) -> None:
    from ramet.runtime.model_files import locate_model
    from ramet.runtime.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(locate_model(None), cache_dir=tmp_path)
    vocabulary = Vocabulary(tokenizer.token_bytes(), tokenizer.special_ids, tokenizer.eos_token_ids, 49152)
    compiler = LlguidanceCompiler(vocabulary, tokenizer.encode_continuation)
    source = json.dumps(TREE)
    least = shortest(compiler, "json_schema", source)
    for budget in (least, least + 2, least + 9, least + 40):
        text, complete = generate(compiler, vocabulary, "json_schema", source, budget, choose, budget)
        assert complete, text
        jsonschema.Draft202012Validator(TREE).validate(json.loads(text))


def test_lengths_are_the_same_on_an_arena_that_was_walked_before() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "format": "hostname"}, "b": {"not": {"enum": ["x"]}, "type": "string", "maxLength": 9}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    language = lower("json_schema", json.dumps(schema)).read()
    first, arena = language.walker, language.walker.arena
    first.walk(language.start, b'{"a":"some-host.org","b":"xy')
    second = Walker(Arena.of(list(arena.nodes), list(arena.rules)))
    for node in range(len(arena.nodes)):
        assert first.shortest(node) == second.shortest(node)
    assert second.shortest(language.start) == len(b'{"a":"0","b":""}')
