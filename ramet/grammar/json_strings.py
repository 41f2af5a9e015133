"""String values and property names as expressions over the insides of JSON strings."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache

from ramet.errors import GrammarError
from ramet.grammar.arena import NONE, UNBOUNDED, Arena
from ramet.grammar.char_ranges import ALL
from ramet.grammar.copied_expressions import copied
from ramet.grammar.derivatives import Walker
from ramet.grammar.pattern_expressions import anything, search
from ramet.grammar.schema_branches import Strings
from ramet.grammar.string_formats import FORMATS, MAX_LENGTHS


@copied
def string_body(arena: Arena, strings: Strings) -> int:
    """What stands between the quotes, in every spelling."""
    high = min((MAX_LENGTHS[name] for name in strings.formats & MAX_LENGTHS.keys()), default=None)
    if strings.high is not None:
        high = strings.high if high is None else min(high, strings.high)
    parts = [search(arena, pattern, quoted=True) for pattern in sorted(strings.patterns)]
    parts += [search(arena, f"^(?:{FORMATS[name]})$", quoted=True) for name in sorted(strings.formats)]
    if strings.low or high is not None or not parts:
        parts.append(arena.rep(arena.chars(ALL, True), strings.low, UNBOUNDED if high is None else high))
    parts += [arena.negate(search(arena, pattern, quoted=True, wide=True)) for pattern in sorted(strings.unmatched)]
    return conjunction(arena, [*parts, *([] if not strings.excluded else [none_of(arena, sorted(strings.excluded))])])


def literal(arena: Arena, text: str) -> int:
    """Every spelling of one text."""
    return arena.seq(*[arena.chars(((ord(char), ord(char)),), True) for char in text])


def none_of(arena: Arena, texts: Iterable[str]) -> int:
    return arena.conj((anything(arena, True), arena.negate(arena.alt(literal(arena, text) for text in texts))))


def conjunction(arena: Arena, parts: list[int]) -> int:
    """All of `parts`, within the insides of JSON strings. `anything` is left out beside a part that says as much."""
    every = anything(arena, True)
    kept = [part for part in parts if part != every]
    if all(arena.nodes[part].op == "negate" for part in kept):
        kept.append(every)
    return arena.conj(kept)


class StringFacts:
    """Questions about strings, answered on an arena of their own."""

    def __init__(self) -> None:
        self.arena = Arena()
        self._walker = Walker(self.arena)
        self.body = cache(lambda strings: string_body(self.arena, strings))

    def is_empty(self, strings: Strings) -> bool:
        return _is_empty(strings)

    def accepts(self, strings: Strings, text: str) -> bool:
        return self._walker.matches(self.body(strings), text.translate(_ESCAPES).encode("utf-8", "surrogatepass"))

    def matches(self, pattern: str, name: str) -> bool:
        return self.accepts(Strings(patterns=frozenset({pattern})), name)

    def is_possible(self, node: int) -> bool:
        return node != NONE and not self._walker.is_empty(node)


@lru_cache(maxsize=1024)
def _is_empty(strings: Strings) -> bool:
    arena = Arena()
    try:
        return Walker(arena).is_empty(string_body(arena, strings))
    except GrammarError:
        return False  # too many states to tell


_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x20), 0x22, 0x5C)}
