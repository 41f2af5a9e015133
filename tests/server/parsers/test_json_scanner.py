"""The character-wise JSON reader against the standard library's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.server.parsers.json_scanner import MAX_DEPTH, JsonScanner
from ramet.server.parsers.scan import Mismatch

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
soup = st.text('{}[]",:\\u0019eE+-.trufalsn \n\x01é', max_size=24)


def accepts(text: str) -> bool:
    """Exactly `text` is one value."""
    scanner = JsonScanner()
    try:
        if any(not scanner.feed(char) for char in text):
            return False
        return scanner.done or not scanner.feed("|")  # a number is complete only before something else
    except Mismatch:
        return False


def is_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return text == text.strip()


@given(values, st.booleans(), st.sampled_from([None, 1]))
@settings(deadline=None, max_examples=80)
def test_every_value_is_read_to_its_end(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert accepts(text)
    assert not accepts(text[:-1]) or isinstance(value, int | float)


@given(soup | st.builds(lambda v, at, s: json.dumps(v)[:at] + s + json.dumps(v)[at:], values, st.integers(0, 20), soup))
@settings(deadline=None, max_examples=200)
def test_it_accepts_what_json_loads_accepts(text: str) -> None:
    assert accepts(text) == is_json(text)


@pytest.mark.parametrize(
    "text", ["01", "1.", "-", ".5", "1e", "+1", "NaN", "[1,]", '{"a":1,}', "{1:2}", '"\\x"', '"\\u12g4"', '"\t"', "tru"]
)
def test_what_is_close_to_json_is_refused(text: str) -> None:
    assert not accepts(text)


def test_depth_is_bounded() -> None:
    assert accepts("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert not accepts("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
