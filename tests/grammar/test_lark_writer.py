"""Many given texts, written as a tree of beginnings: the engine takes exactly them."""

from __future__ import annotations

import json
import random

import pytest

from ramet.grammar.lark_writer import MANY_TEXTS, MAX_BRANCHINGS
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import lower
from ramet.grammar.lowering_main import _is_light
from ramet.grammar.matcher import CompiledGrammar, Vocabulary

COMPILER = LlguidanceCompiler(Vocabulary((*(bytes([byte]) for byte in range(256)), b""), frozenset({256}), (256,), 257))
RNG = random.Random(0)
SETS: dict[str, list[str]] = {
    "numbered": [f"choice {index}" for index in range(500)],
    "random": ["".join(RNG.choices('ab "\\é\n(', k=RNG.randint(0, 6))) for _ in range(500)],
    "each the beginning of the next": ["a" * length for length in range(300)],
    "one of many like the rest": [*(f"x{index}y" for index in range(MANY_TEXTS)), "x", "xyz", ""],
}


@pytest.mark.parametrize("name", SETS)
def test_exactly_the_texts_are_accepted(name: str) -> None:
    texts = sorted(set(SETS[name]))
    grammar = COMPILER.compile("json_schema", json.dumps({"enum": texts}))
    for text in texts:
        assert accepts(grammar, text), text
    others = {text[:-1] for text in texts} | {text + "a" for text in texts} | {text[1:] for text in texts}
    for text in sorted(others.difference(texts)):
        assert not accepts(grammar, text), text


def accepts(grammar: CompiledGrammar, value: str) -> bool:
    for text in {json.dumps(value), json.dumps(value, ensure_ascii=False)}:
        data, matcher = list(text.encode()), grammar.matcher()
        if matcher.accept(data) != len(data) or not matcher.complete:
            return False
    return True


def test_the_tree_is_not_deeper_than_the_engine_reads() -> None:
    texts = [f"{'a' * length}{tail}" for length in range(200) for tail in range(MANY_TEXTS)]
    text = lower("json_schema", json.dumps({"enum": texts})).text
    depth = most = 0
    for char in text:
        depth += (char == "(") - (char == ")")
        most = max(most, depth)
    assert 2 < most <= MAX_BRANCHINGS + 2
    assert accepts(COMPILER.compile("json_schema", json.dumps({"enum": texts})), "a" * 199 + "7")


@pytest.mark.parametrize(
    ("schema", "is_light"),
    [
        ({"enum": [f"choice {index}" for index in range(10_000)]}, True),
        ({"properties": {"a": {"type": "string"}, "b": {"items": {"type": "number"}}}}, True),
        ({"enum": [f"{index} {'x' * 80}" for index in range(10_000)]}, False),
        ({"properties": {f"property_{index}": {"type": "string"} for index in range(2_000)}}, False),
        ({"type": "string", "pattern": "^(" + "|".join(f"{index}a*" for index in range(3_000)) + ")$"}, False),
    ],
)
def test_what_is_small_or_plain_needs_no_trial(schema: object, is_light: bool) -> None:
    assert _is_light(lower("json_schema", json.dumps(schema))) == is_light
