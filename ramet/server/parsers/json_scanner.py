"""JSON read one character at a time: as strict as RFC 8259, without building the value."""

from __future__ import annotations

import json
import re
from typing import Any

from ramet.server.parsers.scan import EndOfText, Mismatch, Scan, Steps

MAX_DEPTH = 128
PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
"""What a string may hold as it is."""
SPACES = " \t\n\r"
NUMBER: dict[str, dict[str, str]] = {
    "sign": {"0": "zero", "1-9": "whole"},
    "zero": {".": "point", "e": "e"},
    "whole": {"0": "whole", "1-9": "whole", ".": "point", "e": "e"},
    "point": {"0": "fraction", "1-9": "fraction"},
    "fraction": {"0": "fraction", "1-9": "fraction", "e": "e"},
    "e": {"+-": "exponent sign", "0": "exponent", "1-9": "exponent"},
    "exponent sign": {"0": "exponent", "1-9": "exponent"},
    "exponent": {"0": "exponent", "1-9": "exponent"},
}
NUMBER_ENDS = ("zero", "whole", "fraction", "exponent")
KINDS = {"0": "0", ".": ".", "e": "e", "E": "e", "+": "+-", "-": "+-"} | dict.fromkeys("123456789", "1-9")
LITERALS = {"t": "rue", "f": "alse", "n": "ull"}


class JsonScanner:
    """One value, from its first character on. States: value, value or end, string, escape, hex, literal, number, key, key or end, colon,
    next, done."""

    def __init__(self) -> None:
        self._state = "value"
        self._stack: list[str] = []  # the ends that are awaited: ] or }
        self._rest = ""  # of a literal
        self._number = ""
        self._is_key = False
        self._hex_left = 0

    @property
    def in_string(self) -> bool:
        """Then characters of `PLAIN` need not be fed."""
        return self._state == "string"

    @property
    def done(self) -> bool:
        """The value is complete and nothing can belong to it any more."""
        return self._state == "done"

    def feed(self, char: str) -> bool:
        """Take the next character. False: a number, the value, was complete before it. Raises `Mismatch` where it is not JSON."""
        match self._state:
            case "string":
                self._string(char)
            case "escape" | "hex":
                self._escape(char)
            case "literal":
                self._literal(char)
            case "number":
                return self._in_number(char)
            case _ if char in SPACES and self._stack:
                pass
            case state:
                self._structure(state, char)
        return True

    def _structure(self, state: str, char: str) -> None:
        if state in ("value", "value or end"):
            if char == "]" and state == "value or end":
                self._pop(char)
            else:
                self._begin_value(char)
        elif state in ("key", "key or end"):
            if char == "}" and state == "key or end":
                self._pop(char)
            elif char == '"':
                self._state, self._is_key = "string", True
            else:
                raise Mismatch
        elif state == "colon" and char == ":":
            self._state = "value"
        elif state == "next" and char == ",":
            self._state = "key" if self._stack[-1] == "}" else "value"
        elif state == "next":
            self._pop(char)
        else:
            raise Mismatch

    def _begin_value(self, char: str) -> None:
        if char in "{[":
            if len(self._stack) == MAX_DEPTH:
                raise Mismatch
            self._stack.append("}" if char == "{" else "]")
            self._state = "key or end" if char == "{" else "value or end"
        elif char == '"':
            self._state, self._is_key = "string", False
        elif char in LITERALS:
            self._state, self._rest = "literal", LITERALS[char]
        elif char == "-" or char in "0123456789":
            self._state, self._number = "number", "sign"
            if char != "-":
                self._number = NUMBER["sign"][KINDS[char]]
        else:
            raise Mismatch

    def _string(self, char: str) -> None:
        if char == '"':
            self._state = "colon" if self._is_key else self._after_value()
        elif char == "\\":
            self._state = "escape"
        elif char < " ":
            raise Mismatch

    def _escape(self, char: str) -> None:
        if self._state == "hex":
            if char not in "0123456789abcdefABCDEF":
                raise Mismatch
            self._hex_left -= 1
            self._state = "hex" if self._hex_left else "string"
        elif char == "u":
            self._state, self._hex_left = "hex", 4
        elif char in '"\\/bfnrt':
            self._state = "string"
        else:
            raise Mismatch

    def _literal(self, char: str) -> None:
        if char != self._rest[0]:
            raise Mismatch
        self._rest = self._rest[1:]
        if not self._rest:
            self._state = self._after_value()

    def _in_number(self, char: str) -> bool:
        following = NUMBER[self._number].get(KINDS.get(char, ""))
        if following is not None:
            self._number = following
            return True
        if self._number not in NUMBER_ENDS:
            raise Mismatch
        self._state = self._after_value()
        return self.feed(char) if self._stack else False

    def _pop(self, char: str) -> None:
        if char != self._stack[-1]:
            raise Mismatch
        self._stack.pop()
        self._state = self._after_value()

    def _after_value(self) -> str:
        return "next" if self._stack else "done"


def read_json(scan: Scan) -> Steps[Any]:
    """A JSON value, parsed; its text stays held."""
    start, scanner = scan.num_held, JsonScanner()
    while not scanner.done:
        char = yield from scan.peek()
        if scanner.in_string and scan.run(PLAIN):
            continue
        if char and not scanner.feed(char):
            break
        yield from scan.take()
    return parsed(scan.held(start))


def read_text(scan: Scan) -> Steps[str]:
    """A JSON string, without its quotes."""
    if (yield from scan.peek()) not in ('"', ""):
        raise Mismatch
    text: str = yield from read_json(scan)
    return text


def stream_object(scan: Scan) -> Steps[None]:
    """A JSON object, passed on as the arguments of the call that has begun, up to where it stops being JSON."""
    scanner = JsonScanner()
    while not scanner.done:
        char = yield from scan.peek()
        if not char:
            raise EndOfText
        if scanner.in_string and (run := scan.run(PLAIN)):
            scan.arguments(run)
            continue
        scanner.feed(char)
        scan.arguments((yield from scan.take()))


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mismatch from error


def is_text(text: str) -> bool:
    """Whether it can be sent: half of a surrogate pair, which an escape may stand for, cannot."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
