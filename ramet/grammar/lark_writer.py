"""Expressions → a grammar in llguidance's Lark: rules for structure, one terminal per `lexeme`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

from ramet.grammar.arena import EPSILON, UNBOUNDED, Arena
from ramet.grammar.char_ranges import MUST_ESCAPE, Ranges, complement, escape_words, intersect
from ramet.grammar.derivatives import Walker

MANY_TEXTS = 32
MAX_BRANCHINGS = 16
"""Within each other."""
MANY_CHARS = 200
"""Of a regex that is written once for all terminals in which it comes up."""
ONE_NAME = frozenset({"lexeme", "epsilon", "text", "chars", "word"})
SPELLED = {code: chr(code) if re.match(r"\w", chr(code)) else f"\\x{{{code:x}}}" for code in range(128)}
"""In a regex, whatever stands beside it."""
EMPTY = "(?:)"
"""Between two slashes with nothing between them a comment begins."""


def write_rules(walker: Walker, start: int, prefix: str = "", named: Mapping[int, str] = MappingProxyType({})) -> tuple[str, list[str]]:
    """The expression that stands for `start`, and the rules and terminals it needs, their names beginning with `prefix`. `named`: what
    terminals are called that are written elsewhere."""
    writer = _Writer(walker, prefix, named)
    expression = writer.expression(start)
    return expression, list(writer.lines())


class _Writer:
    def __init__(self, walker: Walker, prefix: str, named: Mapping[int, str]) -> None:
        self._walker = walker
        self._arena: Arena = walker.arena
        self._prefix = prefix
        self._elsewhere = named
        self._rules: dict[int, str] = {}
        self._queue: list[int] = []
        self._terminals: dict[int, str] = {}
        self._parts_of_terminals: dict[int, str] = {}
        self._algebraic: dict[int, bool] = {}

    def lines(self) -> Iterator[str]:
        while self._queue:
            rule = self._queue.pop()
            yield f"{self._rules[rule]}: {self._body(self._arena.rules[rule])}"
        for node, name in self._terminals.items():
            yield f"{name}: {self._terminal(node)}"
        for node, name in self._parts_of_terminals.items():
            yield f"{name}: /{self._regex(node)}/"

    # ── rules ──

    def expression(self, node: int) -> str:
        op, of = self._arena.nodes[node]
        if op == "seq":
            return " ".join(self._parts(node))
        if op == "alt":
            return self._alternatives(of)
        if op == "rep":
            return '""' if self._walker.is_empty(of[0]) else _whole(self.expression(of[0])) + _counts(of[1], of[2])
        if op == "ref":
            return self._rule(node)
        if op == "epsilon":
            return '""'
        if op == "fresh":
            return self.expression(*self._arena.parts(node))  # that items differ, no terminal can tell
        return self._named(of if op == "lexeme" else node)

    def _parts(self, node: int) -> Iterator[str]:
        while self._arena.nodes[node].op == "seq":
            first, node = self._arena.nodes[node].of
            yield self.expression(first)
        yield self.expression(node)

    def _body(self, node: int) -> str:
        """Of a rule, where alternatives need no parentheses: those are a rule more for the engine."""
        op, of = self._arena.nodes[node]
        return " | ".join([*self._kept(of), *(['""'] if EPSILON in of else [])]) if op == "alt" else self.expression(node)

    def _alternatives(self, parts: tuple[int, ...]) -> str:
        kept = self._kept(parts)
        found = kept[0] if len(kept) == 1 else f"({' | '.join(kept)})"
        if EPSILON not in parts:
            return found
        return _whole(found) + "?" if kept else '""'

    def _kept(self, parts: tuple[int, ...]) -> list[str]:
        return [self.expression(part) for part in parts if part != EPSILON and not self._walker.is_empty(part)]

    def _rule(self, node: int) -> str:
        """Rules that are but another name are left out."""
        rule = body = node
        while self._arena.nodes[body].op == "ref":
            rule, body = body, self._arena.rules[self._arena.nodes[body].of]
        if self._arena.nodes[body].op in ONE_NAME:
            return self.expression(body)
        index = self._arena.nodes[rule].of
        if index not in self._rules:
            self._rules[index] = f"{self._prefix}r{index}"
            self._queue.append(index)
        return self._rules[index]

    def _named(self, node: int) -> str:
        if node in self._elsewhere:
            return self._elsewhere[node]
        if node not in self._terminals:
            self._terminals[node] = f"{self._prefix.upper()}T{node}"
        return self._terminals[node]

    # ── terminals ──

    def _terminal(self, node: int) -> str:
        """Regexes as far as they go; intersections and complements are the grammar's own, and what is long and often used has a name."""
        op, of = self._arena.nodes[node]
        if not self._is_algebraic(node):
            return f"/{self._regex(node) or EMPTY}/" if op != "text" else self._text_terminal(node)
        if op == "chars":
            return self._parts_of_terminals.setdefault(node, f"{self._prefix.upper()}C{node}")
        if op == "conj":
            return "(" + " & ".join(self._terminal(part) for part in of) + ")"
        if op == "negate":
            return f"~({self._terminal(of)})"
        if op == "alt":
            return "(" + " | ".join(self._terminal(part) for part in of if part != EPSILON) + ")" + ("?" if EPSILON in of else "")
        if op == "rep":
            return _whole(self._terminal(of[0])) + _counts(of[1], of[2])
        assert op == "seq", op
        return " ".join(self._sequence(node))

    def _sequence(self, node: int) -> Iterator[str]:
        """Neighbours that are regexes as one."""
        regex = ""
        while node != EPSILON:
            op, of = self._arena.nodes[node]
            part, node = of if op == "seq" else (node, EPSILON)
            if not self._is_algebraic(part):
                regex += self._regex(part)
                continue
            yield from [f"/{regex}/"] if regex else []
            yield self._terminal(part)
            regex = ""
        yield from [f"/{regex}/"] if regex else []

    def _is_algebraic(self, node: int) -> bool:
        """Of a terminal: it is no regex alone."""
        op, of = self._arena.nodes[node]
        if op in ("text", "word", "epsilon"):
            return False
        if op == "chars":
            return bool(of[1]) and len(_quoted_class(of[0])) >= MANY_CHARS
        if node not in self._algebraic:
            self._algebraic[node] = op in ("conj", "negate") or any(map(self._is_algebraic, self._arena.parts(node)))
        return self._algebraic[node]

    def _text_terminal(self, node: int) -> str:
        return json.dumps(_decoded(self._arena.nodes[node].of), ensure_ascii=False)

    def _regex(self, node: int) -> str:
        op, of = self._arena.nodes[node]
        if op == "seq":
            return self._regex(of[0]) + self._regex(of[1])
        if op == "alt":
            parts = [part for part in of if part != EPSILON]
            texts = [self._arena.nodes[part].of for part in parts if self._arena.nodes[part].op == "text"]
            are_all = len(texts) == len(parts) and len(parts) >= MANY_TEXTS
            regex = _choice(list(map(_decoded, texts)), MAX_BRANCHINGS) if are_all else f"(?:{'|'.join(map(self._regex, parts))})"
            return regex + ("?" if EPSILON in of else "")
        if op == "rep":
            return f"(?:{self._regex(of[0])}){_counts(of[1], of[2])}"
        if op == "text":
            return _literal(_decoded(of))
        if op == "chars":
            return _quoted_class(of[0]) if of[1] else _class(of[0])
        if op == "word":
            return "".join(_byte_class(mask) for mask in of)
        return "" if op == "epsilon" else self._regex(of)


def _whole(expression: str) -> str:
    """As what an operator behind it is about."""
    return expression if expression.isalnum() else f"({expression})"


def _counts(low: int, high: int) -> str:
    if high == UNBOUNDED:
        return {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return f"{{{low},{high}}}"


def _choice(texts: list[str], num_branchings: int) -> str:
    """One of many, as a tree of beginnings: the engine reads that in a third of the time."""
    first, last = min(texts), max(texts)
    length = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    by_next: dict[str, list[str]] = {}
    for text in texts:
        by_next.setdefault(text[length : length + 1], []).append(text[length:])
    branches: list[str] = []
    for rests in by_next.values():
        is_branching = len(rests) >= MANY_TEXTS and num_branchings > 0
        branches += [_choice(rests, num_branchings - 1)] if is_branching else map(_literal, rests)
    return f"{_literal(first[:length])}(?:{'|'.join(branches)})"


def _decoded(text: str) -> str:
    return text.encode("latin-1").decode("utf-8")


def _literal(text: str) -> str:
    return text.translate(SPELLED) if text.isascii() else "".join([_char(ord(char)) for char in text])


def _char(code: int) -> str:
    return SPELLED.get(code) or f"\\x{{{code:x}}}"


def _class(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _char(ranges[0][0])
    return "[" + "".join(_char(low) if low == high else f"{_char(low)}-{_char(high)}" for low, high in ranges) + "]"


@lru_cache(maxsize=256)
def _quoted_class(ranges: Ranges) -> str:
    raw = intersect(ranges, complement(MUST_ESCAPE))
    options = ([_class(raw)] if raw else []) + ["".join(_byte_class(mask) for mask in word) for word in escape_words(ranges)]
    return "(?:" + "|".join(options) + ")"


@lru_cache(maxsize=1024)
def _byte_class(mask: int) -> str:
    if mask == (1 << 256) - 1:
        return "(?s:.)"
    ranges: list[tuple[int, int]] = []
    while mask:
        low = (mask & -mask).bit_length() - 1
        gap = mask + (1 << low)  # the carry runs through to where the ones end
        high = (gap & -gap).bit_length() - 1
        ranges.append((low, high - 1))
        mask &= -1 << high
    return _class(tuple(ranges))
