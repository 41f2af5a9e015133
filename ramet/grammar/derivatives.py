"""Walking a language byte by byte: what may follow a byte (Brzozowski's derivative), how long the shortest rest is, and which it is."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count, pairwise
from typing import Any

from ramet.errors import GrammarError
from ramet.grammar.arena import INFINITE, NONE, Arena
from ramet.grammar.char_ranges import edges, least_len
from ramet.grammar.distinct_series import SERIES, DistinctSeries
from ramet.grammar.rule_order import Group, in_groups

MAX_SEARCH = 20_000
"""States that the search for the shortest text of an intersection may visit."""
TEXTS = frozenset({"text", "word"})
NICE = b'0a "A1.-_:/@T'
"""Bytes that a shortest text is made of where others would do as well."""


class Walker:
    """Built when all rules of the arena are defined. Everything is remembered: walking the same place twice costs a lookup. `settled`: that
    of another one, on an arena that holds the same."""

    def __init__(self, arena: Arena, settled: tuple[list[bool], list[int]] | None = None) -> None:
        self.arena = arena
        self._step: dict[int, int] = {}
        self._spelled: dict[int, int] = {}
        self._cuts: dict[int, frozenset[int]] = {}
        self._texts: dict[int, bytes] = {}
        self._nullable: list[bool] = []
        self._shortest: list[int] = []
        self.series = DistinctSeries(self)
        self._series_lengths: dict[int, int] = {}
        self.groups: list[Group] = []  # nodes with references to rules in them
        if settled is None:
            self._settle_rules()
        else:
            self._nullable, self._shortest = settled
        self.num_settled = len(self._nullable)

    @property
    def settled(self) -> tuple[list[bool], list[int]]:
        return self._nullable[: self.num_settled], self._shortest[: self.num_settled]

    # ── the three questions ──

    def step(self, node: int, byte: int) -> int:
        """The language of rests after `byte`; NONE when it may not come here."""
        key = node << 8 | byte
        found = self._step.get(key)
        if found is None:
            found = self._step[key] = self._derive(node, byte)
        return found

    def shortest(self, node: int) -> int:
        """Bytes of its shortest text; INFINITE when it has none."""
        return self._known(node)

    def nullable(self, node: int) -> bool:
        if node >= len(self._nullable):
            self._grow()
        return self._nullable[node]

    def witness(self, node: int) -> bytes:
        """A shortest text. The language must not be empty."""
        out: list[bytes] = []
        while self.arena.nodes[node].op == "seq":
            first, node = self.arena.nodes[node].of
            out.append(self._witness(first))
        out.append(self._witness(node))
        return b"".join(out)

    def walk(self, node: int, text: bytes, before: bytes = b"") -> int:
        """`before`: what led to `node`, which counts where items must differ."""
        if self.series.is_needed:
            return self.series.walk(node, before, text)
        for byte in text:
            node = self.step(node, byte)
        return node

    def matches(self, node: int, text: bytes) -> bool:
        return self.nullable(self.walk(node, text))

    def is_empty(self, node: int) -> bool:
        return self.shortest(node) >= INFINITE

    # ── derivatives ──

    def _derive(self, node: int, byte: int) -> int:
        arena = self.arena
        op, of = arena.nodes[node]
        if op == "seq":
            head = arena.seq(self.step(of[0], byte), of[1])
            return arena.alt((head, self.step(of[1], byte))) if self.nullable(of[0]) else head
        if op == "alt":
            return arena.alt(self.step(part, byte) for part in of)
        if op == "text":
            return arena.text(of[1:].encode("latin-1")) if ord(of[0]) == byte else NONE
        if op == "word":
            return arena.word(of[1:]) if of[0] >> byte & 1 else NONE
        if op == "chars":
            return self.step(self._spell(node), byte)
        if op == "ref":
            return self.step(arena.rules[of], byte)
        if op == "lexeme":
            return self.step(of, byte)
        if op in SERIES:
            return self.series.step(node, byte)
        return self._derive_rest(op, of, byte)

    def _derive_rest(self, op: str, of: tuple[int, ...] | int, byte: int) -> int:
        arena = self.arena
        if op == "rep":
            assert isinstance(of, tuple)
            part, low, high = of
            low = 0 if self.nullable(part) else low
            return arena.seq(self.step(part, byte), arena.rep(part, max(low - 1, 0), high - 1 if high > 0 else high))
        if op == "conj":
            assert isinstance(of, tuple)
            return self._conj(self.step(part, byte) for part in of)
        if op == "negate":
            assert isinstance(of, int)
            return arena.negate(self.step(of, byte))
        return NONE

    def _conj(self, parts: Iterable[int]) -> int:
        """A negation of nothing says nothing."""
        kept = {part for part in parts if part != self.arena.negate(NONE)}
        return self.arena.conj(kept) if kept else self.arena.negate(NONE)

    def _spell(self, node: int) -> int:
        if node not in self._spelled:
            self._spelled[node] = self.arena.spelled(node)
        return self._spelled[node]

    # ── lengths ──

    def _settle_rules(self) -> None:
        """Least fixpoints over the rules: what can be empty only grows, then lengths only fall. Nodes that lead to no rule are measured
        when they are asked for: a search among them must meet no length that is still on its way down."""
        size = len(self.arena.nodes)
        self._nullable, self._shortest = [False] * size, [-1] * size
        self.groups = in_groups(self.arena, self._settle_plain_nodes())
        for group in self.groups:
            settle(self._nullable, self._is_nullable, group)
        if self.series.is_needed:
            self._series_lengths = {node: 0 for group in self.groups for node in group.nodes if self.arena.nodes[node].op == "fresh"}
        self._settle_lengths(size)
        while (lengths := self._lengths_of_series()) != {node: self._shortest[node] for node in lengths}:
            self._series_lengths = lengths
            self._settle_lengths(size)

    def _settle_plain_nodes(self) -> bytearray:
        """Those without references to rules in them; which nodes are none."""
        nodes, parts, nullable = self.arena.nodes, self.arena.parts, self._nullable
        has_refs = bytearray(len(nodes))
        for node, (op, of) in enumerate(nodes):
            if op == "ref":
                has_refs[node] = True
            elif op in TEXTS:
                self._shortest[node] = len(of)
            elif op == "chars":
                pass
            elif any(map(has_refs.__getitem__, parts(node))):
                has_refs[node] = True
            else:
                nullable[node] = self._is_nullable(node)
        return has_refs

    def _settle_lengths(self, size: int) -> None:
        """`size`: nodes that were there before any was measured; what came later is measured again."""
        del self._shortest[size:], self._nullable[size:]
        self._texts.clear()
        for group in self.groups:
            for node in group.nodes:
                self._shortest[node] = INFINITE
        for group in self.groups:
            settle(self._shortest, self._length, group)

    def _lengths_of_series(self) -> dict[int, int]:
        """How long they are when items differ can be told where it is known how long items are."""
        return {node: self.series.length(node) for node in self._series_lengths}

    def _grow(self) -> None:
        """Nodes that came after the rules were settled stand on older ones."""
        for node in range(len(self._nullable), len(self.arena.nodes)):
            self._nullable.append(self._is_nullable(node))
            self._shortest.append(-1)

    def _measure(self, node: int) -> int:
        length = self._search(node)[0] if self.arena.nodes[node].op in ("conj", "negate") else self._length(node)
        self._shortest[node] = length
        return length

    def _is_nullable(self, node: int) -> bool:
        op, of = self.arena.nodes[node]
        if op in ("seq", "conj"):
            return all(map(self._nullable.__getitem__, of))
        if op == "alt":
            return any(map(self._nullable.__getitem__, of))
        if op in ("ref", "lexeme"):
            return bool(self._nullable[self.arena.rules[of] if op == "ref" else of])
        if op == "rep":
            return bool(of[1] == 0 or self._nullable[of[0]])
        if op == "negate":
            return not self._nullable[of]
        if op == "within":
            return all(map(self._nullable.__getitem__, self.series.ending(node)))
        return op == "epsilon"

    def _length(self, node: int) -> int:
        op, of = self.arena.nodes[node]
        found = INFINITE
        if self._nullable[node]:
            found = 0
        elif op == "seq":
            found = self._known(of[0]) + self._known(of[1])
        elif op == "alt":
            found = min(map(self._known, of))
        elif op in ("ref", "lexeme"):
            found = self._known(self.arena.rules[of] if op == "ref" else of)
        elif op == "chars":
            found = least_len(*of)
        elif op == "rep":
            found = self._known(of[0]) * of[1]
        elif op in TEXTS:
            found = len(of)
        elif op in SERIES:
            found = self._length_of_series(node)
        return min(found, INFINITE)

    def _length_of_series(self, node: int) -> int:
        """Of one that is being settled, what is known so far."""
        if node not in self._series_lengths:
            return self.series.length(node)
        return self._series_lengths[node] or self._known(*self.arena.parts(node))

    def _known(self, node: int) -> int:
        if node >= len(self._shortest):
            self._grow()
        length = self._shortest[node]
        return length if length >= 0 else self._measure(node)

    # ── the shortest text ──

    def _witness(self, node: int) -> bytes:
        op, of = self.arena.nodes[node]
        if op == "text":
            found: bytes = of.encode("latin-1")
            return found
        if op == "word":
            return bytes(_nice(mask) for mask in of)
        if op == "chars":
            return self.witness(self._spell(node))
        if op == "rep":
            return self.witness(of[0]) * of[1] if of[1] else b""
        if op == "alt":
            length = self.shortest(node)
            return min((self.witness(part) for part in of if self.shortest(part) == length), key=_nicety)
        if op == "seq":
            return self.witness(node)
        if op in ("conj", "negate"):
            self.shortest(node)
            return self._texts[node] if node in self._texts else self._search(node)[1]
        if op in SERIES:
            return self.series.witness(node)
        return b"" if op == "epsilon" else self.witness(of if op == "lexeme" else self.arena.rules[of])

    def _search(self, start: int) -> tuple[int, bytes]:
        """A*: the shortest text that all parts of an intersection share."""
        order = count()
        queue = [(self._at_least(start), next(order), start, b"")]
        seen: set[int] = set()
        while queue:
            _, _, node, text = heapq.heappop(queue)
            if self.nullable(node):
                self._texts[start] = text
                return len(text), text
            if node in seen:
                continue
            seen.add(node)
            if len(seen) > MAX_SEARCH:
                raise GrammarError(f"an intersection of patterns has more than {MAX_SEARCH} states; simplify it")
            for byte in self.representatives(node):
                following = self.series.told(self.step(node, byte), text + bytes((byte,)))
                if following != NONE and following not in seen and (rest := self._at_least(following)) < INFINITE:
                    heapq.heappush(queue, (len(text) + 1 + rest, next(order), following, text + bytes((byte,))))
        return INFINITE, b""

    def _at_least(self, node: int) -> int:
        op, of = self.arena.nodes[node]
        if op == "conj":
            return max(self._at_least(part) for part in of)
        if op == "negate":
            return 0 if self.nullable(node) else 1
        return self.shortest(node)

    def representatives(self, node: int) -> list[int]:
        """One byte of each class of bytes that the node cannot tell apart, the nicest of it."""
        edges = sorted({0, 256, *self.cuts(node)})
        return [_nice((1 << high) - (1 << low)) for low, high in pairwise(edges)]

    def cuts(self, node: int) -> frozenset[int]:
        """Bytes at which a class of first bytes begins."""
        found = self._cuts.get(node)
        if found is None:
            found = self._cuts[node] = frozenset(self._cuts_of(node))
        return found

    def _cuts_of(self, node: int) -> Iterable[int]:
        op, of = self.arena.nodes[node]
        if op == "text":
            return ord(of[0]), ord(of[0]) + 1
        if op == "word":
            return edges(of[0])
        if op in ("alt", "conj"):
            return frozenset().union(*(self.cuts(part) for part in of))
        if op == "seq":
            return self.cuts(of[0]) | (self.cuts(of[1]) if self.nullable(of[0]) else frozenset())
        if op == "chars":
            return self.cuts(self._spell(node))
        if op in ("negate", "lexeme"):
            return self.cuts(of)
        if op in SERIES:
            return self.cuts(self.series.opened(node))
        return self.cuts(of[0]) if op == "rep" else self.cuts(self.arena.rules[of]) if op == "ref" else ()


def settle(known: list[Any], find: Callable[[int], Any], group: Group) -> None:
    """Least fixpoint: `find` what is `known` of a group's nodes until nothing changes. What does not lead to itself is asked once."""
    changed = True
    while changed:
        changed = False
        for node in group.nodes:
            found = find(node)
            if found != known[node]:
                known[node], changed = found, group.is_circle


def _nice(mask: int) -> int:
    return next((byte for byte in NICE if mask >> byte & 1), (mask & -mask).bit_length() - 1)


def _nicety(text: bytes) -> tuple[int, bytes]:
    return sum(byte == 0x5C or byte > 0x7E for byte in text), text
