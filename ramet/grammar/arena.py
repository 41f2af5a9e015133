"""Languages as expressions over bytes: built once by a front end, written out for llguidance, and walked byte by byte by derivatives.

An expression is a number in an `Arena`, which keeps equal ones once. Rules (`ref`) may be recursive, but not to the left. `conj` and
`negate` hold no refs. `lexeme` marks what the writer makes one terminal of; it says nothing about the language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from ramet.grammar.char_ranges import Ranges, json_words, utf8_words

NONE, EPSILON = 0, 1
"""The language without texts, and the one of the empty text alone."""
UNBOUNDED = -1
INFINITE = 1 << 40
"""As a length: longer than any text."""


class Node(NamedTuple):
    """`op` and what it is made of:

    none | epsilon | text: str of bytes (latin-1) | chars: (ranges, quoted) | word: byte sets | seq: a, b | alt: ids | rep: a, low, high |
    conj: ids | negate: a | ref: rule | lexeme: a | fresh, within: see `distinct_series`
    """

    op: str
    of: Any


as_node: Callable[[tuple[str, Any]], Node] = partial(tuple.__new__, Node)
"""As `Node._make`, which takes five times as long."""


class Arena:
    """Grows only. `rules[i]` is the body of rule i, set by `define`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.rules: list[int] = []
        self._known: dict[tuple[str, Any], int] = {}
        self.copies: dict[object, int] = {}  # by what they are copies of; see `copied_expressions`
        self._intern("none", ())
        self._intern("epsilon", ())

    # ── leaves ──

    def text(self, text: bytes | str) -> int:
        data = text.encode("utf-8") if isinstance(text, str) else text
        return self._intern("text", data.decode("latin-1")) if data else EPSILON

    def chars(self, ranges: Ranges, quoted: bool = False) -> int:
        """One character; `quoted`: as the inside of a JSON string spells it."""
        return self._intern("chars", (tuple(ranges), quoted)) if ranges else NONE

    def word(self, masks: tuple[int, ...]) -> int:
        return self._intern("word", masks) if masks else EPSILON

    # ── combinations ──

    def seq(self, *parts: int) -> int:
        """Nested to the right, so that equal tails are shared."""
        result = EPSILON
        for part in reversed(parts):
            result = self._pair(part, result)
        return result

    def alt(self, parts: Iterable[int]) -> int:
        flat: set[int] = set()
        for part in parts:
            op, of = self.nodes[part]
            if op == "alt":
                flat.update(of)
            else:
                flat.add(part)
        flat.discard(NONE)
        if len(flat) < 2:
            return flat.pop() if flat else NONE
        return self._intern("alt", tuple(sorted(flat)))

    def optional(self, part: int) -> int:
        return self.alt((part, EPSILON))

    def rep(self, part: int, low: int = 0, high: int = UNBOUNDED) -> int:
        if high == 0 or part in (NONE, EPSILON):
            return EPSILON if low == 0 or part == EPSILON else NONE
        if (low, high) == (1, 1):
            return part
        return self._intern("rep", (part, low, high))

    def conj(self, parts: Iterable[int]) -> int:
        flat: set[int] = set()
        for part in parts:
            flat.update(self.nodes[part].of if self.nodes[part].op == "conj" else (part,))
        if NONE in flat:
            return NONE
        return flat.pop() if len(flat) == 1 else self._intern("conj", tuple(sorted(flat)))

    def negate(self, part: int) -> int:
        node = self.nodes[part]
        result: int = node.of if node.op == "negate" else self._intern("negate", part)
        return result

    def lexeme(self, part: int) -> int:
        return part if part in (NONE, EPSILON) else self._intern("lexeme", part)

    def series(self, op: str, of: tuple[Any, ...]) -> int:
        """A place in a series whose items must differ."""
        return self._intern(op, of)

    # ── rules ──

    def new_rule(self) -> int:
        """A reference to a rule that is still to be defined."""
        self.rules.append(NONE)
        return self._intern("ref", len(self.rules) - 1)

    def define(self, ref: int, body: int) -> int:
        self.rules[self.nodes[ref].of] = body
        return ref

    # ── inside ──

    def parts(self, node: int) -> tuple[int, ...]:
        """What it is made of, rules that it refers to aside; always older nodes."""
        op, of = self.nodes[node]
        if op in ("seq", "alt", "conj"):
            found: tuple[int, ...] = of
            return found
        if op == "fresh":
            found = of[0][:1]  # the series as if nothing had to differ
            return found
        return of[:1] if op == "rep" else (of,) if op in ("negate", "lexeme") else ()

    def reachable(self, nodes: Iterable[int]) -> set[int]:
        """`nodes`, and all that they are made of or refer to."""
        found, queue = set[int](), list(nodes)
        while queue:
            node = queue.pop()
            if node not in found:
                found.add(node)
                queue += (self.rules[self.nodes[node].of],) if self.nodes[node].op == "ref" else self.parts(node)
        return found

    def spelled(self, node: int) -> int:
        """`chars` as words of bytes."""
        ranges, quoted = self.nodes[node].of
        return self.alt(self.word(word) for word in (json_words(ranges) if quoted else utf8_words(ranges)))

    def copy(self, node: Node, places: Mapping[int, int]) -> int:
        """A node of another arena, no ref or series, whose parts are in this one at `places`."""
        op, of = node
        if op == "seq":
            return self._intern(op, (places[of[0]], places[of[1]]))
        if op in ("alt", "conj"):
            return self._intern(op, tuple(sorted([places[part] for part in of])))
        if op == "rep":
            return self._intern(op, (places[of[0]], of[1], of[2]))
        return self._intern(op, places[of] if op in ("negate", "lexeme") else of)

    def _pair(self, first: int, rest: int) -> int:
        if NONE in (first, rest):
            return NONE
        if EPSILON in (first, rest):
            return rest if first == EPSILON else first
        node = self.nodes[first]
        if node.op == "seq":
            return self._pair(node.of[0], self._pair(node.of[1], rest))
        return self._intern("seq", (first, rest))

    def _intern(self, op: str, of: Any) -> int:
        found = self._known.get((op, of))
        if found is None:
            node = as_node((op, of))
            found = self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return found

    @classmethod
    def of(cls, nodes: list[Node], rules: list[int]) -> Arena:
        """As another was: `nodes` in its order."""
        arena = cls()
        arena.nodes, arena.rules = nodes, rules
        arena._known = dict(zip(nodes, range(len(nodes)), strict=True))
        return arena
