"""Free text as an expression: any text in which certain marks do not stand, up to a mark where it ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ramet.grammar.arena import UNBOUNDED, Arena
from ramet.grammar.char_ranges import ALL


def any_text(arena: Arena, most: int = UNBOUNDED) -> int:
    """Of so many characters."""
    return arena.rep(arena.chars(ALL), 0, most)


def one_of(arena: Arena, texts: Iterable[str]) -> int:
    return arena.alt(arena.text(text) for text in texts)


def without(arena: Arena, marks: Sequence[str], text: int) -> int:
    """Those of `text` in which none of the marks stands."""
    every = any_text(arena)
    return arena.conj((text, arena.negate(arena.seq(every, one_of(arena, marks), every)))) if marks else text


def up_to_end(arena: Arena, end: str, marks: Sequence[str], text: int) -> int:
    """`end` behind a `text` in which no mark begins, be it that it goes on in `end`."""
    behind = [arena.rep(arena.chars(ALL), max(len(end) - len(mark) + 1, 0)) for mark in marks]
    begun = arena.alt(arena.seq(any_text(arena), arena.text(mark), rest) for mark, rest in zip(marks, behind, strict=True))
    return arena.conj((arena.seq(text, arena.text(end)), arena.negate(begun)))


def up_to_trigger(arena: Arena, trigger: str, triggers: Iterable[str], excludes: Sequence[str]) -> int:
    """Text with a trigger only at its very end, and no mark that is excluded."""
    every = any_text(arena)
    earlier = arena.seq(every, one_of(arena, triggers), arena.rep(arena.chars(ALL), 1))
    return without(arena, excludes, arena.conj((arena.seq(every, arena.text(trigger)), arena.negate(earlier))))
