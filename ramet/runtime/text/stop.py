"""Stop strings and stop regexes over streamed text, independent of how the text is cut into tokens.

The text ends at the first character that completes a match; of matches that end there the longest wins. So the outcome depends on the
text alone. A regex is judged on the text so far (`$` is "here") and sees at most `WINDOW` characters back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from ramet.errors import InvalidRequest

WINDOW = 1024
"""Longest match of a stop regex, in characters; the bound on what one step may cost."""
TIMEOUT = 1.0
"""Seconds that one search of a stop regex may take before its request is refused."""
LOOKS_AHEAD = regex.compile(r"\$|\\[ZzbB]|\(\?<?[=!]")
"""Syntax with which a regex may match a text and not match a longer one."""


@dataclass(frozen=True, slots=True)
class StopResult:
    """`text` may be shown. `matched`: the stop string or regex that ended the text; nothing follows then."""

    text: str
    matched: str | None = None


@dataclass(frozen=True, slots=True)
class _Match:
    end: int
    start: int
    source: str


class StopFilter:
    """Passes text on until a stop matches. With `trim` the match is cut off, and any text that may be the beginning of one is held
    back until it is clear that it is not."""

    def __init__(self, stop: Sequence[str] = (), stop_regex: Sequence[str] = (), *, trim: bool = True) -> None:
        self._strings = tuple(text for text in stop if text)
        self._regexes = tuple(compile_stop_regex(source) for source in stop_regex)
        self._trim = trim
        self._reach = max([len(text) for text in self._strings] + [WINDOW] * len(self._regexes), default=0)
        self._buffer = ""  # the end of the text so far
        self._first = 0  # where matches may begin; 1 once earlier text was dropped, so that ^ and \b see a character before it
        self._sent = 0  # how much of the buffer has been passed on

    def push(self, text: str) -> StopResult:
        if not self._reach or not text:
            return StopResult(text)
        old_len = len(self._buffer)
        self._buffer += text
        found = self._earliest(old_len)
        if found:
            return StopResult(self._pass_on(found.start if self._trim else found.end), found.source)
        shown = self._pass_on(self._safe_end())
        self._forget()
        return StopResult(shown)

    def flush(self) -> str:
        """At the end of the stream: what was held back."""
        return self._pass_on(len(self._buffer))

    def _pass_on(self, end: int) -> str:
        shown = self._buffer[self._sent : end]
        self._sent = max(self._sent, end)
        return shown

    def _earliest(self, old_len: int) -> _Match | None:
        found: list[_Match] = []
        for text in self._strings:
            at = self._buffer.find(text, max(0, old_len - len(text) + 1))
            if at >= 0:
                found.append(_Match(at + len(text), at, text))
        last_end = min((match.end for match in found), default=len(self._buffer))
        for pattern in self._regexes:
            match = self._earliest_of(pattern, old_len, last_end)
            if match:
                found.append(match)
        return min(found, key=lambda match: (match.end, match.start), default=None)

    def _earliest_of(self, pattern: regex.Pattern[str], old_len: int, last_end: int) -> _Match | None:
        """The match with the earliest end after `old_len`. One search rules out most steps, for patterns where that is sound."""
        if not LOOKS_AHEAD.search(pattern.pattern) and not self._search(pattern, self._start_of(old_len), last_end):
            return None
        for end in range(old_len + 1, last_end + 1):
            match = self._search(pattern, self._start_of(end), end)
            if match:
                return _Match(end, match.start(), pattern.pattern)
        return None

    def _start_of(self, end: int) -> int:
        return max(self._first, end - WINDOW)

    def _search(self, pattern: regex.Pattern[str], start: int, end: int, *, partial: bool = False) -> regex.Match[str] | None:
        try:
            return pattern.search(self._buffer, start, end, partial=partial, timeout=TIMEOUT)
        except TimeoutError:
            message = f"stop_regex {pattern.pattern!r} took more than {TIMEOUT:g} s; write it with less backtracking"
            raise InvalidRequest(message, param="stop_regex") from None

    def _safe_end(self) -> int:
        """Up to where no match can begin that more text would complete."""
        end = len(self._buffer)
        if not self._trim:
            return end
        held = [end - _overlap(self._buffer, text) for text in self._strings]
        for pattern in self._regexes:
            match = self._search(pattern, self._start_of(end), end, partial=True)
            held.append(match.start() if match else end)
        return min(held)

    def _forget(self) -> None:
        """Drop text that no match can reach; seldom, so that its cost is spread over many steps."""
        keep = min(len(self._buffer) - self._reach - 1, self._sent)
        if keep > 4 * self._reach:
            self._buffer = self._buffer[keep:]
            self._sent -= keep
            self._first = 1


def compile_stop_regex(source: str) -> regex.Pattern[str]:
    """Raises `InvalidRequest` for a regex that is wrong, or that matches the empty text and so would stop everything at once."""
    try:
        pattern = regex.compile(source)
    except regex.error as error:
        raise InvalidRequest(f"stop_regex {source!r} is not a regex: {error}", param="stop_regex") from error
    if pattern.search("", timeout=TIMEOUT):
        raise InvalidRequest(f"stop_regex {source!r} matches the empty text, so nothing would be generated", param="stop_regex")
    return pattern


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
