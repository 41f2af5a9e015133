"""GBNF says what texts there are character by character; the engine cuts text into the longest terminals. Where these differ, as in
`[0-9]+ [ \\n]*` before "\\n", a terminal is written as a rule of its characters, and a text that hides others behind it likewise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from ramet.grammar.arena import NONE, Arena
from ramet.grammar.derivatives import Walker
from ramet.grammar.lark_reader import Unreadable, read_lark
from ramet.grammar.lark_tokens import NotLark, Token, tokens_of

MAX_STEPS = 20_000
"""Pairs of places that are looked at; what is still undecided stays as it is."""


def by_character(lark: str) -> str:
    """`lark`, as converted from GBNF, with the same texts for an engine that takes the longest terminal. Lines keep their numbers."""
    while True:
        try:
            tokens = tokens_of(lark)
        except NotLark:
            return lark
        hiding = _with_users(tokens, _hiding(tokens))
        if not hiding:
            return lark
        lark = "".join(_rewritten(lark, tokens, hiding))


def _with_users(tokens: Sequence[Token], names: set[str]) -> set[str]:
    """Also the terminals that are made of them: a terminal holds no rules."""
    head = ""
    for token, following in pairwise(tokens):
        head = token.value if following.value == ":" else head
        if token.value in names and head not in names and head.isupper():
            return _with_users(tokens, names | {head})
    return names


def _rewritten(lark: str, tokens: Sequence[Token], hiding: set[str]) -> Iterator[str]:
    at = 0
    for token in tokens:
        if token.value in hiding:
            yield lark[at : token.start]
            yield _characters(token.value) if token.kind == "string" else f"by_character_{token.value.lower()}"
            at = token.end
    yield lark[at:]


def _characters(text: str) -> str:
    return "(" + " ".join(json.dumps(char, ensure_ascii=False) for char in json.loads(text)) + ")"


def _hiding(tokens: Sequence[Token]) -> set[str]:
    """Terminals and texts that go on where another one, or they themselves, could end and something else begin."""
    arena, lexemes = Arena(), dict[str, int]()
    try:
        start = read_lark(arena, tokens, {}, lexemes)
    except Unreadable:
        return set()
    walker = Walker(arena)
    after, steps = _Following(walker, start).after, _Steps(walker)
    long = {name: node for name, node in lexemes.items() if name[0] not in '/"' or (name[0] == '"' and len(json.loads(name)) > 1)}
    return {name for name, node in long.items() if any(steps.goes_on(node, other, after.get(other, 0)) for other in lexemes.values())}


class _Following:
    """Of each node of rules the bytes that may follow it, as masks."""

    def __init__(self, walker: Walker, start: int) -> None:
        self._walker = walker
        self._arena = walker.arena
        self._refs = [(node, of) for node, (op, of) in enumerate(self._arena.nodes) if op == "ref"]
        self.after: dict[int, int] = {}
        self._first: dict[int, int] = {}
        self._settle()
        while self._changes(lambda: self._visit_all(start)):
            pass

    def _settle(self) -> None:
        """First bytes; those of rules grow until nothing changes."""
        for node in range(len(self._arena.nodes)):
            self._first[node] = 0
        while self._changes(self._grow):
            pass

    def _changes(self, act: Callable[[], None]) -> bool:
        before = dict(self._first), dict(self.after)
        act()
        return before != (self._first, self.after)

    def _grow(self) -> None:
        for node in range(len(self._first)):
            self._first[node] = self._first_of(node)

    def _first_of(self, node: int) -> int:
        op, of = self._arena.nodes[node]
        if op == "ref":
            return self._first[self._arena.rules[of]]
        if op == "alt":
            found = 0
            for part in of:
                found |= self._first[part]
            return found
        if op == "seq":
            return self._first[of[0]] | (self._first[of[1]] if self._walker.nullable(of[0]) else 0)
        return self._first[of[0]] if op == "rep" else first_bytes(self._walker, node)

    def _visit_all(self, start: int) -> None:
        self._visit(start, 0)
        for ref, index in self._refs:
            self._visit(self._arena.rules[index], self.after.get(ref, 0))

    def _visit(self, node: int, after: int) -> None:
        self.after[node] = after = self.after.get(node, 0) | after
        op, of = self._arena.nodes[node]
        if op == "seq":
            self._visit(of[1], after)
            self._visit(of[0], self._first[of[1]] | (after if self._walker.nullable(of[1]) else 0))
        elif op == "alt":
            for part in of:
                self._visit(part, after)
        elif op == "rep":
            self._visit(of[0], after | (self._first[of[0]] if of[2] != 1 else 0))


class _Steps:
    def __init__(self, walker: Walker) -> None:
        self._walker = walker
        self._num_left = MAX_STEPS

    def goes_on(self, node: int, other: int, after: int) -> bool:
        """Whether a text of `other` ends where `node` can go on with one of the bytes of `after`."""
        seen, queue = {(node, other)}, [(node, other)]
        while queue and self._num_left:
            self._num_left -= 1
            here, there = queue.pop()
            is_begun = (here, there) != (node, other)
            if is_begun and self._walker.nullable(there) and first_bytes(self._walker, here) & after:
                return True
            for byte in {0, *self._walker.cuts(here), *self._walker.cuts(there)} - {256}:
                pair = self._walker.step(here, byte), self._walker.step(there, byte)
                if NONE not in pair and pair not in seen:
                    seen.add(pair)
                    queue.append(pair)
        return False


def first_bytes(walker: Walker, node: int) -> int:
    """As a mask, the bytes that a text of the node may begin with."""
    found, edges = 0, sorted({0, 256, *walker.cuts(node)})
    for low, high in pairwise(edges):
        if walker.step(node, low) != NONE:
            found |= (1 << high) - (1 << low)
    return found
