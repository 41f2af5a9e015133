"""Stops against their obvious twin, which judges the whole text character by character."""

from __future__ import annotations

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import InvalidRequest
from ramet.runtime.text import stop as stop_module
from ramet.runtime.text.stop import WINDOW, StopFilter, StopResult

STRINGS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)
REGEXES = st.lists(
    st.sampled_from([r"a+b", r"[bc]{2,3}a", r"c\s+a", r"ab|ca", r"b$", r"\bca\b", r"a(?=b)", r"(?<!a)cc", r"^ca"]), max_size=2
)


def twin(text: str, strings: list[str], regexes: list[str], trim: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        so_far = text[:end]
        found = [(end - len(s), s) for s in strings if so_far.endswith(s)]
        found += [(match.start(), source) for source in regexes if (match := regex.search(source, so_far))]
        if found:
            start, source = min(found, key=lambda pair: pair[0])
            return text[: start if trim else end], source
    return text, None


def streamed(chunks: list[str], stop_filter: StopFilter) -> tuple[str, str | None, list[str]]:
    shown: list[str] = []
    for chunk in chunks:
        result = stop_filter.push(chunk)
        shown.append(result.text)
        if result.matched is not None:
            return "".join(shown), result.matched, shown
    shown.append(stop_filter.flush())
    return "".join(shown), None, shown


@settings(deadline=None, max_examples=400)
@given(chunks=st.lists(st.text("abc ", max_size=6), max_size=8), strings=STRINGS, regexes=REGEXES, trim=st.booleans())
def test_equals_the_twin_under_any_chunking(chunks: list[str], strings: list[str], regexes: list[str], trim: bool) -> None:
    shown, matched, _ = streamed(chunks, StopFilter(strings, regexes, trim=trim))
    assert (shown, matched) == twin("".join(chunks), strings, regexes, trim)


@settings(deadline=None, max_examples=200)
@given(chunks=st.lists(st.text("abc", max_size=4), max_size=8), stop=st.text("abc", min_size=1, max_size=4))
def test_nothing_is_held_back_longer_than_needed(chunks: list[str], stop: str) -> None:
    stop_filter, so_far, shown = StopFilter([stop]), "", ""
    for chunk in chunks:
        result = stop_filter.push(chunk)
        so_far, shown = so_far + chunk, shown + result.text
        if result.matched:
            return
        held = so_far[len(shown) :]
        assert stop.startswith(held) and len(held) < len(stop)


def test_across_token_borders() -> None:
    stop_filter = StopFilter(["\n\nQ:"])
    assert [stop_filter.push(piece).text for piece in ("Paris", "\n", "\n", "A", "\n\n")] == ["Paris", "", "", "\n\nA", ""]
    assert stop_filter.push("Q: next") == StopResult("", "\n\nQ:")


def test_no_trim_keeps_the_match_and_drops_what_follows() -> None:
    assert StopFilter(["END"], trim=False).push("a END b") == StopResult("a END", "END")


def test_regex_holds_back_its_beginning_and_is_named() -> None:
    stop_filter = StopFilter(stop_regex=[r"</\w+>"])
    assert stop_filter.push("x</").text == "x"
    assert stop_filter.push("thi").text == ""
    assert stop_filter.push("nk>y") == StopResult("", r"</\w+>")


def test_long_streams_keep_a_bounded_buffer_and_still_match() -> None:
    stop_filter = StopFilter(["STOP"], [r"\d{4}$"])
    text = "".join(stop_filter.push("lorem ipsum ").text for _ in range(2000))
    assert len(stop_filter._buffer) < 6 * WINDOW
    assert text.startswith("lorem") and len(text) > 2000 * 12 - WINDOW
    assert stop_filter.push("in 1984 it").matched == r"\d{4}$"


def test_an_anchored_regex_does_not_match_where_text_was_dropped() -> None:
    stop_filter = StopFilter(stop_regex=["^b"])
    assert all(stop_filter.push("ab" * 50).matched is None for _ in range(200))


@pytest.mark.parametrize("source", ["(", "*a", "[z-a]"])
def test_a_wrong_regex_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        StopFilter(stop_regex=[source])
    assert refused.value.param == "stop_regex"


def test_a_regex_that_matches_nothing_at_all_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        StopFilter(stop_regex=["a*"])


def test_catastrophic_backtracking_ends_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "TIMEOUT", 0.05)
    with pytest.raises(InvalidRequest, match="backtracking"):
        StopFilter(stop_regex=[r"(?:a|a|aa)+(?:a|a|aa)+c$"]).push("a" * 500 + "b")
