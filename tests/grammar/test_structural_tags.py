"""Structural tags against a reader of their own: random tags and texts under random tokens, what masks allow, forced or not, in time."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jsonschema
import numpy as np
import pytest

from ramet.errors import GrammarError
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.grammar.lowering import lower
from tests.grammar.test_budget import EOS, PIECES, VOCABULARY

COMPILER = LlguidanceCompiler(VOCABULARY, lambda text: list(text.encode()))
LETTERS = "<f=>ab{}\n"
BODIES: tuple[tuple[Any, tuple[str, ...], tuple[str, ...]], ...] = (
    ({"type": "integer", "minimum": 0, "maximum": 9}, ("0", "7"), ("10", "-1", "1.5")),
    ({"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, ("[]", "[true]", "[true,false]"), ("[1]", "[true,true,true]")),
    (
        {"type": "object", "properties": {"a": {"enum": ["a", "<f=", "b"]}}, "required": ["a"], "additionalProperties": False},
        ('{"a":"a"}', '{"a":"<f="}'),
        ('{"a":"c"}', "{}"),
    ),
    ({"type": "string", "maxLength": 3}, ('"a"', '"<f="', '""', '"\\n"'), ('"aaaa"', "1")),
    ({"type": "null"}, ("null",), ("nul", "true")),
)
"""Schema, texts that follow it, texts that do not."""
JUDGES = [jsonschema.Draft202012Validator(schema) for schema, _, _ in BODIES]
Tag = tuple[str, int, str]
"""Begin, which of the bodies, end."""


class Reader:
    """The texts of tags, said once more: up to the end of the first trigger text is free, then a tag that begins with it must follow."""

    def __init__(self, triggers: Sequence[str], tags: Sequence[Tag]) -> None:
        self._tags = [(max((text for text in triggers if tag[0].startswith(text)), key=len), tag) for tag in tags]

    def accepts(self, text: str) -> bool:
        @lru_cache
        def free(at: int) -> bool:
            ends = [found + len(trigger) for trigger, _ in self._tags if (found := text.find(trigger, at)) >= 0]
            return not ends or any(
                self._follows(text, at, min(ends), *tag) and free(after)
                for tag in self._tags
                for after in self._ends(text, min(ends), *tag)
            )

        return free(0)

    def _follows(self, text: str, at: int, end: int, trigger: str, tag: Tag) -> bool:
        return end - len(trigger) >= at and text[at:end].endswith(trigger) and text.startswith(tag[0][len(trigger) :], end)

    def _ends(self, text: str, end: int, trigger: str, tag: Tag) -> list[int]:
        start = end + len(tag[0]) - len(trigger)
        stops = [stop for stop in range(start, len(text) + 1) if is_valid(tag[1], text[start:stop]) and text.startswith(tag[2], stop)]
        return [stop + len(tag[2]) for stop in stops]


def is_valid(body: int, text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    is_compact = text == text.strip() and (isinstance(value, str) or text == json.dumps(value, separators=(",", ":")))
    return is_compact and bool(JUDGES[body].is_valid(value))


def some_text(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(low, high)))


def some_tags(rng: random.Random) -> tuple[list[str], list[Tag]]:
    triggers = sorted({some_text(rng, 1, 3) for _ in range(rng.randint(1, 3))})
    return triggers, [
        (rng.choice(triggers) + some_text(rng, 0, 2), rng.randrange(len(BODIES)), some_text(rng, 0, 3)) for _ in range(rng.randint(1, 3))
    ]


def source_of(triggers: Sequence[str], tags: Sequence[Tag]) -> str:
    structures = [{"begin": begin, "schema": BODIES[body][0], "end": end} for begin, body, end in tags]
    return json.dumps({"type": "structural_tag", "triggers": triggers, "structures": structures})


def in_tokens(rng: random.Random, data: bytes) -> list[int]:
    """Some tokens that spell it."""
    found, at = list[int](), 0
    while at < len(data):
        piece = rng.choice([piece for size in (1, 2, 4, 8) if (piece := data[at : at + size]) in PIECES])
        found.append(PIECES.index(piece))
        at += len(piece)
    return found


@pytest.mark.parametrize("seed", range(24))
def test_texts_are_taken_as_the_reader_reads_them(seed: int) -> None:
    rng = random.Random(seed)
    triggers, tags = some_tags(rng)
    reader, lowered = Reader(triggers, tags), lower("structural_tag", source_of(triggers, tags))
    grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    for _ in range(12):
        text = some_text(rng, 0, 4)
        for begin, body, end in rng.choices(tags, k=rng.randint(0, 3)):
            _, right, wrong = BODIES[body]
            text += begin + rng.choice(right if rng.random() < 0.8 else wrong) + end + some_text(rng, 0, 4)
        tokens, matcher = in_tokens(rng, text.encode()), grammar.matcher()
        taken = matcher.accept(tokens) == len(tokens) and matcher.complete
        assert taken == walker.matches(start, text.encode()) == reader.accepts(text), text


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("budget", [None, 12, 30])
def test_what_masks_allow_is_read_and_closed_in_time(seed: int, budget: int | None) -> None:
    rng = random.Random(seed)
    triggers, tags = some_tags(rng)
    reader, matcher = Reader(triggers, tags), COMPILER.compile("structural_tag", source_of(triggers, tags)).matcher(budget)
    out, row, num_taken = b"", np.zeros(10, np.uint32), 0
    while num_taken < (budget or 40):
        matcher.fill_mask(row)
        allowed = [int(token) for token in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")) if token != EOS]
        near = [token for token in allowed if all(chr(byte) in LETTERS + '"0[]tn' for byte in PIECES[token])]
        forced = matcher.forced_tokens() if rng.random() < 0.5 else []
        tokens = forced or [rng.choice(near or allowed)]
        assert tokens[0] in allowed and matcher.accept(tokens) == len(tokens)
        out, num_taken = out + b"".join(PIECES[token] for token in tokens), num_taken + len(tokens)
    assert num_taken <= (budget or 1000) and (matcher.complete or budget is None), out
    assert not matcher.complete or reader.accepts(out.decode("utf-8", "replace")), out


@pytest.mark.parametrize(("end", "good", "bad"), [("00", ("<f100", "<f0000 <f700"), ("<f00", "<f10")), ("", ("<f1", "<f12."), ("<f",))])
def test_an_end_may_begin_as_the_value_goes_on(end: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    structures = [{"begin": "<f", "schema": {"type": "integer"}, "end": end}]
    lowered = lower("structural_tag", json.dumps({"triggers": ["<f"], "structures": structures}))
    grammar, (walker, start, _) = COMPILER.assemble(lowered), lowered.read()
    for text in (*good, *bad):
        tokens, matcher = list(text.encode()), grammar.matcher()
        assert (matcher.accept(tokens) == len(tokens) and matcher.complete) == walker.matches(start, text.encode()) == (text in good), text


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("[]", "#"),
        ('{"triggers": ["<f"], "structures": [], "at_least_one": true}', "/at_least_one"),
        ('{"triggers": ["<f"], "structures": []}', "/structures"),
        ('{"triggers": [""], "structures": [{"begin": "<f", "schema": {}, "end": ""}]}', "/triggers/0"),
        ('{"triggers": ["<f"], "structures": [{"begin": "<g", "schema": {}, "end": ""}]}', "/structures/0/begin"),
        ('{"triggers": ["<f"], "structures": [{"begin": "<f", "schema": {}, "end": "", "a/b": 1}]}', "/structures/0/a~1b"),
        ('{"triggers": ["<f"], "structures": [{"begin": "<f", "schema": 1, "end": ""}]}', "/structures/0"),
        (
            '{"triggers": ["<f"], "structures": [{"begin": "<f", "schema": {"properties": {"a": {"typ": 1}}}, "end": ""}]}',
            "/structures/0/schema/properties/a/typ",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_its_place(source: str, where: str) -> None:
    with pytest.raises(GrammarError) as refused:
        lower("structural_tag", source)
    assert refused.value.where == where and refused.value.param == "structural_tag"
