"""The dialect of `regex` constraints: Python's `re` as far as it is regular, so that `re.fullmatch` accepts what a constraint lets through.

The text as a whole is constrained: ^ and \\A at its beginning, $, \\Z and \\z at its end are allowed and say nothing new. Understood are
literals, escapes, classes (\\d \\s \\w of this Python's Unicode, \\p{…}, POSIX [[:alpha:]]), groups (named, not capturing), alternatives,
greedy and lazy repetition, and the flags i, s, u. Refused, with their place: look-around, backreferences, conditionals, atomic groups,
possessive repetition, word borders, the flags m, x, a, L.

The engine behind it reads Rust's syntax. What the two spell or mean differently is translated: \\d \\s \\w and their negations, `[` `&&`
`--` `~~` inside a class, literal braces, `{,n}`, `\\Z`, comments. A translation stands between slashes on one line, as Lark writes it.
Left as it is: the flag i folds case by the engine's newer Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import NoReturn

from ramet.errors import GrammarError

REFUSED = (
    (re.compile(r"\(\?<?[=!]"), "look-around is not a regular constraint"),
    (re.compile(r"\(\?P=|\\[1-9]|\\g<"), "backreferences are not a regular constraint"),
    (re.compile(r"\(\?\("), "conditional groups are not supported"),
    (re.compile(r"\(\?>"), "atomic groups are not supported"),
    (re.compile(r"\\[bB]"), "word borders are not supported"),
    (re.compile(r"\(\?[a-zA-Z]*-?[a-zA-Z]*[mxaL][a-zA-Z]*[:)-]"), "only the flags i, s and u are supported"),
    (re.compile(r"(?:[*+?]|\{\d*,?\d*\})\+"), "possessive repetition is not supported"),
)
"""Tried at every place outside of classes and escapes."""
COMMENT = re.compile(r"\(\?#[^)]*\)")
REPETITION = re.compile(r"\{(\d*)(,?)(\d*)\}")
ESCAPE = re.compile(r"\\(?:x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[pP]\{[^}]*\}|.)", re.DOTALL)
POSIX = re.compile(r"\[:\^?\w+:\]")
SET_OPERATORS = ("&&", "--", "~~")
IN_LARK = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\f": r"\f"}
"""What a regex between slashes spells otherwise. Spelt here, so that the engine's places in it are known."""
KNOWN = rf"\p{{age={'.'.join(unicodedata.unidata_version.split('.')[:2])}}}"
"""Characters that this Python's Unicode knows; the engine knows later digits and letters too."""
PYTHON_CLASSES = {"d": rf"\d&&{KNOWN}", "w": rf"\p{{L}}\p{{N}}_&&{KNOWN}", "s": r"\s\x1c-\x1f"}
"""What Python's \\d, \\w and \\s hold, as insides of a class."""


@dataclass(frozen=True, slots=True)
class Translation:
    """`text` in Rust's syntax, one line. `places[i]`: the position in the user's regex of the character `text[i]`."""

    text: str
    places: tuple[int, ...]

    def place(self, position: int) -> int:
        return self.places[min(position, len(self.places) - 1)] if self.places else 0


def translate(source: str) -> Translation:
    """Raises `GrammarError` with `where="char N"` for what the dialect leaves out."""
    pieces: list[tuple[str, int]] = []
    at = 0
    while at < len(source):
        piece, following = _class(source, at) if source[at] == "[" else _item(source, at)
        pieces.append((piece, at))
        at = following
    return Translation("".join(piece for piece, _ in pieces), tuple(place for piece, place in pieces for _ in piece))


def refuse(what: str, at: int) -> NoReturn:
    raise GrammarError(f"regex: {what}", where=f"char {at}", param="regex")


def _item(source: str, at: int) -> tuple[str, int]:
    """One item outside of classes: its translation, and where the next one begins."""
    for pattern, what in REFUSED:
        if pattern.match(source, at):
            refuse(what, at)
    if comment := COMMENT.match(source, at):
        return "", comment.end()
    if source[at] == "\\":
        text, end = _escape(source, at)
        return ("\\z" if text == "\\Z" else text), end
    if source[at] == "{":
        return _brace(source, at)
    return IN_LARK.get(source[at], source[at]), at + 1


def _brace(source: str, at: int) -> tuple[str, int]:
    """In Python a brace that is no repetition is a literal."""
    repetition = REPETITION.match(source, at)
    if repetition is None or repetition[0] in ("{}", "{,}"):
        return "\\{", at + 1
    low, comma, high = repetition.groups()
    if source[repetition.end() : repetition.end() + 1] == "+":
        refuse("possessive repetition is not supported", at)
    return "{" + (low or "0") + comma + high + "}", repetition.end()


def _escape(source: str, at: int) -> tuple[str, int]:
    escape = ESCAPE.match(source, at)
    if escape is None:
        refuse("it ends with a backslash that escapes nothing", at)
    letter = escape[0][1:]
    if letter in PYTHON_CLASSES:
        return f"[{PYTHON_CLASSES[letter]}]", escape.end()
    if letter.lower() in PYTHON_CLASSES:
        return f"[^[{PYTHON_CLASSES[letter.lower()]}]]", escape.end()
    return IN_LARK.get(letter, escape[0]), escape.end()


def _class(source: str, start: int) -> tuple[str, int]:
    """A class from its [ to its ]."""
    at = start + 1
    head = "["
    if source[at : at + 1] == "^":
        head, at = "[^", at + 1
    if source[at : at + 1] == "]":  # stands for itself at the first place
        head, at = head + "\\]", at + 1
    pieces = [head]
    while at < len(source) and source[at] != "]":
        piece, at = _class_item(source, at)
        pieces.append(piece)
    if at >= len(source):
        refuse("unclosed character class", start)
    return "".join(pieces) + "]", at + 1


def _class_item(source: str, at: int) -> tuple[str, int]:
    if source[at] == "\\":
        text, end = _escape(source, at)
        return ("\\x08" if text == "\\b" else text), end
    if posix := POSIX.match(source, at):
        return posix[0], posix.end()
    if source.startswith(SET_OPERATORS, at):
        return "\\" + source[at] + "\\" + source[at], at + 2
    return ("\\[" if source[at] == "[" else IN_LARK.get(source[at], source[at])), at + 1
