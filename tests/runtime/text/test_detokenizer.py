"""The stream of a detokenizer equals the decoding of all bytes at once, however the tokens are cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.text.detokenizer import Detokenizer

ALL_BYTES = tuple(bytes([byte]) for byte in range(256))
PIECES = (*ALL_BYTES, b"", b"hello", " 中".encode(), "😀".encode()[:3], "é".encode() + b"\xe4\xb8")


def streamed(chunks: list[list[int]], strip: bool = False) -> tuple[list[str], str]:
    detokenizer = Detokenizer(PIECES, strip_first_space=strip)
    return [detokenizer.push(chunk) for chunk in chunks], detokenizer.flush()


@settings(deadline=None, max_examples=300)
@given(chunks=st.lists(st.lists(st.integers(0, len(PIECES) - 1), max_size=6), max_size=12), strip=st.booleans())
def test_equals_decoding_all_at_once(chunks: list[list[int]], strip: bool) -> None:
    shown, rest = streamed(chunks, strip)
    whole = b"".join(PIECES[index] for chunk in chunks for index in chunk).decode("utf-8", "replace")
    assert "".join(shown) + rest == (whole.removeprefix(" ") if strip else whole)


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=30))
def test_never_half_a_character(text: str) -> None:
    shown, rest = streamed([[byte] for byte in text.encode("utf-8")])
    assert rest == ""
    assert [char for char in shown if char] == list(text)


def test_an_incomplete_character_comes_at_the_end() -> None:
    shown, rest = streamed([[0xE4], [0xB8]])
    assert shown == ["", ""]
    assert rest == "\ufffd"


def test_ids_past_the_table_add_nothing() -> None:
    assert streamed([[len(PIECES) + 3, ord("a")]]) == (["a"], "")
