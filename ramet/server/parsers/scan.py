"""The shared core: a format reads characters one after the other, as if the whole text were there, and waits where it is not yet.

A format is a generator that asks `Scan` for the next character and never sees where one chunk ends and the next begins; that is why its
events, joined, are the same for every way of cutting a text.

Every character a format has read is *held* until the format decides: it is text (`keep`), or it is markup (`drop`).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, str, T]
"""A reading that waits for more text whenever it has none; its result is `T`."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call whose name is known; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the JSON text of the last call's arguments."""

    text: str


Event = Text | Thought | CallBegin | Arguments
Piece = type[Text] | type[Thought] | type[Arguments]


class Mismatch(Exception):
    """What stands here is not what the format says."""


class EndOfText(Mismatch):
    """The text ends before the format does."""


class Scan:
    """One text: what is left to read, what is held, and the events so far."""

    def __init__(self) -> None:
        self.piece: type[Text] | type[Thought] = Text  # what kept characters become
        self._buffer = ""
        self._at = 0
        self._ended = False
        self._held: list[str] = []
        self._events: list[Event] = []
        self._open: list[str] = []  # pieces of the last event, while it grows
        self._open_kind: Piece = Text
        self._in_call = False  # the call that is being read has begun, or was read just now

    # For whoever feeds the text.

    def feed(self, text: str) -> None:
        """More text; "" is its end."""
        self._buffer, self._at, self._ended = self._buffer[self._at :] + text, 0, not text

    def take_events(self) -> list[Event]:
        self._close_event()
        events, self._events = self._events, []
        return events

    # Reading.

    def peek(self) -> Steps[str]:
        """The next character, left where it is; "" at the end."""
        while self._at == len(self._buffer):
            if self._ended:
                return ""
            self.feed((yield))
        return self._buffer[self._at]

    def take(self) -> Steps[str]:
        """The next character, now held."""
        char = yield from self.peek()
        if not char:
            raise EndOfText
        self._at += 1
        self._held.append(char)
        return char

    def spaces(self) -> Steps[None]:
        while (yield from self.peek()).isspace():
            yield from self.take()

    def word(self) -> Steps[str]:
        """Letters, digits and _ - . as a function's name has them; perhaps none."""
        start = len(self._held)
        while (char := (yield from self.peek())) and (char.isalnum() or char in "_-."):
            yield from self.take()
        return self.held(start)

    def expect(self, text: str) -> Steps[None]:
        for char in text:
            if (yield from self.peek()) not in ("", char):
                raise Mismatch
            yield from self.take()

    def maybe(self, text: str) -> Steps[bool]:
        """Read `text` if it stands here, else nothing."""
        start = len(self._held)
        try:
            yield from self.expect(text)
        except EndOfText:
            raise
        except Mismatch:
            self._buffer, self._at = "".join(self._held[start:]) + self._buffer[self._at :], 0
            del self._held[start:]
            return False
        return True

    def find(self, markers: Sequence[str]) -> Steps[str | None]:
        """Keep everything up to the first of `markers`, which is then held, with the white space before it; None at the end."""
        firsts = re.compile("[" + re.escape("".join({marker[0] for marker in markers})) + "]")
        left = self.held()  # by a reading that came to nothing
        self.drop()
        self._keep_solid(left)
        tail = ""  # perhaps the beginning of a marker
        while True:
            char = yield from self.peek()
            if not char:
                self._keep_solid(tail)
                return None
            if not tail and not firsts.match(char):
                self._keep_run(firsts)
                continue
            self._at += 1
            tail += char
            if tail in markers:
                self._held.append(tail)
                return tail
            rest = _longest_beginning(tail, markers)
            self._keep_solid(tail[: len(tail) - len(rest)])
            tail = rest

    def run(self, plain: re.Pattern[str]) -> str:
        """As many of the characters at hand as match `plain`, a repeated class; now held. Perhaps none."""
        found = plain.match(self._buffer, self._at)
        if found is None:
            return ""
        self._at = found.end()
        self._held.append(found[0])
        return found[0]

    def rest(self) -> Steps[None]:
        """Keep all that is left, as it comes."""
        while (yield from self.peek()):
            self._held.append(self._buffer[self._at :])
            self._at = len(self._buffer)
            self.keep()

    def attempt(self, reading: Steps[T], *, in_call: bool = False) -> Steps[T | None]:
        """The result of `reading`; None where the text is otherwise. What it held is then text again, unless the text ends inside the
        markup of a call that has begun. `in_call`: it has begun already."""
        self._in_call = in_call
        try:
            result = yield from reading
        except EndOfText:
            if not self._in_call:
                self.keep()
        except Mismatch:
            self.keep()
        else:
            self.drop()
            return result
        self.drop()
        return None

    # Deciding.

    def keep(self) -> None:
        """What is held is text."""
        self._grow(self.piece, "".join(self._held))
        self._held.clear()

    def drop(self) -> None:
        """What is held is markup."""
        self._held.clear()

    def held(self, start: int = 0) -> str:
        return "".join(self._held[start:])

    @property
    def num_held(self) -> int:
        return len(self._held)

    def begin_call(self, name: str) -> None:
        self.drop()
        self._close_event()
        self._events.append(CallBegin(name))
        self._in_call = True

    def arguments(self, text: str) -> None:
        """Pieces of the arguments of the call that has begun."""
        self.drop()
        self._grow(Arguments, text)

    def finish(self) -> None:
        """At the end: what is held is text, but white space after a call is not."""
        if not (self._in_call and self.held().isspace()):
            self.keep()
        self.drop()

    def _keep_run(self, firsts: re.Pattern[str]) -> None:
        """Keep what is at hand up to a character with which a marker may begin."""
        found = firsts.search(self._buffer, self._at)
        end = found.start() if found else len(self._buffer)
        self._keep_solid(self._buffer[self._at : end])
        self._at = end

    def _keep_solid(self, text: str) -> None:
        """Keep `text` up to its last solid character; hold the white space after it, until it is clear what follows."""
        solid = text.rstrip()
        if solid:
            self._held.append(solid)
            self.keep()
            self._in_call = False
        if len(solid) < len(text):
            self._held.append(text[len(solid) :])

    def _grow(self, kind: Piece, text: str) -> None:
        if not text:
            return
        if kind is not self._open_kind:
            self._close_event()
            self._open_kind = kind
        self._open.append(text)

    def _close_event(self) -> None:
        if self._open:
            self._events.append(self._open_kind("".join(self._open)))
            self._open = []


def _longest_beginning(text: str, markers: Sequence[str]) -> str:
    """The longest end of `text` with which one of `markers` begins."""
    return next(text[at:] for at in range(len(text) + 1) if any(marker.startswith(text[at:]) for marker in (*markers, "")))
