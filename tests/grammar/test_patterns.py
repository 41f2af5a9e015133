"""Choices and types as regexes, for Python's `re` and for the constraint dialect alike."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import GrammarError
from ramet.grammar.compiler import create_grammar_compiler
from ramet.grammar.matcher import Vocabulary
from ramet.grammar.patterns import DTYPE_PATTERNS, choices_regex, parse_dtype

COMPILER = create_grammar_compiler("llguidance", Vocabulary((*(bytes([byte]) for byte in range(256)), b""), frozenset({256}), (256,), 257))
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)


def constrained(regex: str, text: str) -> bool:
    matcher = COMPILER.compile("regex", regex).matcher()
    data = list(text.encode("utf-8"))
    return matcher.accept(data) == len(data) and matcher.complete


@settings(deadline=None, max_examples=80)
@given(choices=st.lists(TEXTS, min_size=1, max_size=4), other=TEXTS)
def test_choices_match_exactly_themselves(choices: list[str], other: str) -> None:
    regex = choices_regex(choices)
    for text in [*choices, other]:
        assert (re.fullmatch(regex, text) is not None) == (text in choices)
        assert constrained(regex, text) == (text in choices)


def test_every_ascii_character_is_escaped_right() -> None:
    text = "".join(map(chr, range(128)))
    assert re.fullmatch(choices_regex([text]), text)
    assert constrained(choices_regex([text]), text)


def test_no_choices_are_refused() -> None:
    with pytest.raises(GrammarError, match="empty"):
        choices_regex([])


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        ("int", "-12", -12),
        ("int", "0", 0),
        ("float", "3.50", 3.5),
        ("float", "-0.5e+3", -500.0),
        ("bool", "True", True),
        ("bool", "False", False),
        ("str", json.dumps('a "b" \\ é\n'), 'a "b" \\ é\n'),
    ],
)
def test_values(dtype: str, text: str, value: object) -> None:
    assert constrained(DTYPE_PATTERNS[dtype], text)
    parsed = parse_dtype(dtype, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("dtype", "text"), [("int", "01"), ("int", "-"), ("int", "1.0"), ("float", "1"), ("bool", "true"), ("str", "'a'"), ("str", '"a')]
)
def test_other_texts_are_no_values(dtype: str, text: str) -> None:
    assert not constrained(DTYPE_PATTERNS[dtype], text)
    with pytest.raises(GrammarError):
        parse_dtype(dtype, text)
