"""Regexes as expressions. Python's own parser reads them; what is not regular, or means different things to different engines, is refused.

Two dialects. `python`: what `re` matches, for regex constraints. `shared`: for `pattern` in a JSON schema, where ECMA 262 is the standard
and validators use what they have: a class holds what ECMA and Python agree on, so that what is generated passes either way. It also knows
look-ahead where it is not repeated, and `(?:(?!b).)*` before the end.
"""

from __future__ import annotations

import re
import warnings
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, NoReturn

from re import _constants as code  # isort: skip
from re import _parser as parser  # isort: skip

from ramet.errors import GrammarError
from ramet.grammar.arena import EPSILON, UNBOUNDED, Arena
from ramet.grammar.char_ranges import ALL, LAST, Ranges, complement, intersect, union
from ramet.grammar.ecma_spelling import in_python

Dialect = Literal["python", "shared"]
MAX_REPEAT = 100_000
MAX_DISTRIBUTED = 200
_ECMA_BLANKS = (0x20, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
ECMA_SPACE: Ranges = union([(9, 13), (0x2000, 0x200A), *((code_point, code_point) for code_point in _ECMA_BLANKS)])
ASCII = {"d": union([(48, 57)]), "w": union([(48, 57), (65, 90), (95, 95), (97, 122)]), "s": ECMA_SPACE}
ANCHORS = {code.AT_BEGINNING: "^", code.AT_BEGINNING_STRING: "^", code.AT_END: "$", code.AT_END_STRING: "$"}
LOOKS = (code.ASSERT, code.ASSERT_NOT)
AHEAD = 1
ONE_CHARACTER = (code.LITERAL, code.NOT_LITERAL, code.ANY, code.IN)


class _Class(NamedTuple):
    """Characters certainly in it, and characters that some engine puts in it."""

    narrow: Ranges
    wide: Ranges


def whole(arena: Arena, source: str, dialect: Dialect, quoted: bool = False) -> int:
    """Texts that the regex matches from end to end. Raises `GrammarError`."""
    reader = _Reader(arena, dialect, quoted)
    return reader.edges(list(_parse(source)), False, False)


def search(arena: Arena, source: str, quoted: bool, wide: bool = False) -> int:
    """Texts in which the regex matches somewhere, as `pattern` has it; `quoted`: as they stand inside a JSON string. Where engines disagree
    these are the texts in which all of them find it, or (`wide`) some of them."""
    reader = _Reader(arena, "shared", quoted, wide)
    return reader.edges(list(_parse(in_python(source))), True, True)


def anything(arena: Arena, quoted: bool) -> int:
    return arena.rep(arena.chars(ALL, quoted))


def _parse(source: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            tree = parser.parse(source)
    except (re.error, OverflowError) as error:
        place = getattr(error, "pos", None)
        raise GrammarError(f"not a regex that can be read: {error}", where=None if place is None else f"char {place}") from error
    except RecursionError as error:
        raise GrammarError("the regex is nested too deeply") from error
    if tree.state.flags & (re.IGNORECASE | re.MULTILINE | re.VERBOSE | re.ASCII | re.LOCALE):
        _refuse("flags are not supported")
    return tree


def _refuse(what: str) -> NoReturn:
    raise GrammarError(f"regex: {what}")


class _Reader:
    def __init__(self, arena: Arena, dialect: Dialect, quoted: bool, wide: bool = False) -> None:
        self._arena = arena
        self._dialect = dialect
        self._quoted = quoted
        self._wide = wide
        self._character = arena.chars(ALL, quoted)
        self._any = arena.rep(self._character)
        self._end = arena.optional(arena.chars(((10, 10),), quoted)) if wide else EPSILON  # Python's $ overlooks a last newline
        self._num_distributed = 0

    def edges(self, items: list[Any], open_left: bool, open_right: bool) -> int:
        """A sequence that makes up the whole regex: `open_left`, anything may come before unless ^ forbids it; `open_right` likewise."""
        items = _with_anchors_first(items)
        head, tail = 0, len(items)
        while head < tail and self._anchor(items[head]) == "^":
            head, open_left = head + 1, False
        while tail > head and self._anchor(items[tail - 1]) == "$":
            tail, open_right = tail - 1, False
        core = items[head:tail]
        for at, item in enumerate(core):
            if (at in (0, len(core) - 1) and _holds(item, _is_anchor)) or _holds(item, _looks_ahead, inside=True):
                branches = self._branches(item)
                return self._arena.alt(self.edges([*core[:at], *branch, *core[at + 1 :]], open_left, open_right) for branch in branches)
            if self._dialect == "shared" and (_looks_ahead(item) or _tempered(item) is not None):
                return self._looking_ahead(core, at, open_left, open_right)
        body = self._sequence(core)
        return self._arena.seq(self._any if open_left else EPSILON, body, self._any if open_right else self._end)

    def _looking_ahead(self, core: list[Any], at: int, open_left: bool, open_right: bool) -> int:
        """What comes before `core[at]`, which looks ahead; then what follows as far as it is what that says."""
        if any(_holds(item, _is_beginning) for item in core[at + 1 :]):
            _refuse("^ may only stand at the very beginning")
        before, looked_at = self._sequence(core[:at]), _tempered(core[at])
        if looked_at is not None:
            if open_right or core[at + 1 :]:
                _refuse("a repeated look-ahead may only stand before the end")
            following = self._arena.seq(self._never_before(core[at][1], looked_at), self._end)
        else:
            following = self._arena.conj((self.edges(core[at + 1 :], False, open_right), self._ahead(*core[at])))
        return self._arena.seq(self._any if open_left else EPSILON, before, following)

    def _ahead(self, op: Any, of: Any) -> int:
        is_negative = op is code.ASSERT_NOT
        found = _Reader(self._arena, self._dialect, self._quoted, self._wide != is_negative).edges(list(of[1]), False, True)
        return self._arena.negate(found) if is_negative else found

    def _never_before(self, repetition: Any, looked_at: Any) -> int:
        """Repeated characters before none of which the look-ahead finds what it must not."""
        low, high, part = repetition
        character = self._item(*(part[0][1][3] if part[0][0] is code.SUBPATTERN else part)[1])
        found = self._arena.conj((self._arena.negate(self._ahead(*looked_at)), self._arena.seq(self._character, self._any)))
        every = self._arena.rep(character, low, UNBOUNDED if high is code.MAXREPEAT else high)
        return self._arena.conj((every, self._arena.negate(self._arena.seq(self._any, found))))

    def _branches(self, item: Any) -> list[list[Any]]:
        self._num_distributed += 1
        if self._num_distributed > MAX_DISTRIBUTED:
            _refuse("too many alternatives with anchors of their own")
        op, of = item
        if op is code.SUBPATTERN and not (of[1] or of[2]):
            return [list(of[3])]
        if op is code.BRANCH:
            return [list(branch) for branch in of[1]]
        _refuse("^ and $ may only stand at the very beginning and end")

    def _anchor(self, item: Any) -> str | None:
        return ANCHORS.get(item[1]) if item[0] is code.AT else None

    def _sequence(self, items: Sequence[Any]) -> int:
        return self._arena.seq(*[self._item(op, of) for op, of in items])

    def _item(self, op: Any, of: Any) -> int:
        arena = self._arena
        if op is code.BRANCH:
            return arena.alt(self._sequence(branch) for branch in of[1])
        if op is code.SUBPATTERN:
            if of[1] or of[2]:
                _refuse("flags are not supported")
            return self._sequence(of[3])
        if op in (code.MAX_REPEAT, code.MIN_REPEAT):
            low, high, part = of
            if low > MAX_REPEAT or (high is not code.MAXREPEAT and high > MAX_REPEAT):
                _refuse(f"more than {MAX_REPEAT} repetitions")
            return arena.rep(self._sequence(part), low, UNBOUNDED if high is code.MAXREPEAT else high)
        if op is code.AT:
            _refuse("^ and $ may only stand at the very beginning and end, and word borders nowhere")
        return arena.chars(self._characters(op, of), self._quoted)

    def _characters(self, op: Any, of: Any) -> Ranges:
        if op is code.LITERAL:
            return intersect(((of, of),), ALL)
        if op is code.NOT_LITERAL:
            return complement(((of, of),))
        if op is code.ANY:
            ends = ((10, 10),) if self._dialect == "python" or self._wide else ((10, 10), (13, 13), (0x2028, 0x2029))
            return complement(ends)
        if op is code.IN:
            return self._set(of)
        name = str(op).lower().replace("_", " ")
        if "assert" in name or "group" in name:
            _refuse("look-around, backreferences and the like are not regular")
        _refuse(f"{name} is not supported")

    def _set(self, items: Sequence[Any]) -> Ranges:
        negated = items[0][0] is code.NEGATE
        parts = [self._member(op, of) for op, of in (items[1:] if negated else items)]
        found = union(pair for part in parts for pair in (part.wide if negated != self._wide else part.narrow))
        return complement(found) if negated else intersect(found, ALL)

    def _member(self, op: Any, of: Any) -> _Class:
        if op is code.LITERAL:
            return _Class(((of, of),), ((of, of),))
        if op is code.RANGE:
            return _Class((of,), (of,))
        name = str(of).rsplit("_", 1)[-1].lower()[0]  # CATEGORY_NOT_DIGIT → d
        found = self._category(name)
        return _Class(complement(found.wide), complement(found.narrow)) if "_NOT_" in str(of) else found

    def _category(self, name: str) -> _Class:
        python = _python_classes()[name]
        if self._dialect == "python":
            return _Class(python, python)
        wide = union((*python, *ASCII[name], *(((0xFEFF, 0xFEFF),) if name == "s" else ())))
        return _Class(intersect(ASCII[name], python), wide)


def _holds(item: Any, is_it: Callable[[Any], bool], inside: bool = False) -> bool:
    """Whether it, or an item of its groups and alternatives, is one; `inside`: one of the latter."""
    op, of = item
    if not inside and is_it(item):
        return True
    branches = [of[3]] if op is code.SUBPATTERN else of[1] if op is code.BRANCH else []
    return any(_holds(child, is_it) for branch in branches for child in branch)


def _is_anchor(item: Any) -> bool:
    return item[0] is code.AT and item[1] in ANCHORS


def _is_beginning(item: Any) -> bool:
    return item[0] is code.AT and ANCHORS.get(item[1]) == "^"


def _looks_ahead(item: Any) -> bool:
    return item[0] in LOOKS and item[1][0] == AHEAD


def _tempered(item: Any) -> Any:
    """Of a repeated character with a look-ahead that must not find something before it: that look-ahead."""
    if item[0] not in (code.MAX_REPEAT, code.MIN_REPEAT):
        return None
    part = item[1][2]
    if len(part) == 1 and part[0][0] is code.SUBPATTERN and not any(part[0][1][1:3]):
        part = part[0][1][3]
    is_tempered = len(part) == 2 and _looks_ahead(part[0]) and part[0][0] is code.ASSERT_NOT and part[1][0] in ONE_CHARACTER
    return part[0] if is_tempered else None


def _with_anchors_first(items: list[Any]) -> list[Any]:
    """^ before what looks ahead in the same place."""
    size = next((at for at, item in enumerate(items) if not (_looks_ahead(item) or _is_beginning(item))), len(items))
    return [*sorted(items[:size], key=_looks_ahead), *items[size:]]


@cache
def _python_classes() -> dict[str, Ranges]:
    """What this Python's \\d, \\w and \\s hold."""
    every = (array("I", range(0xD800)) + array("I", range(0xE000, LAST + 1))).tobytes().decode("utf-32")
    return {name: _ranges(match.group() for match in re.finditer(rf"\{name}+", every)) for name in ASCII}


def _ranges(runs: Iterable[str]) -> Ranges:
    return intersect(union((ord(run[0]), ord(run[-1])) for run in runs), ALL)
