"""A Lark grammar as an expression, as far as it is regular in its terminals and not recursive to the left in its rules.

What is left out (see `Unreadable`) is still compiled by llguidance, whose language it is: only its endings are then not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

from ramet.errors import GrammarError
from ramet.grammar.arena import UNBOUNDED, Arena
from ramet.grammar.lark_tokens import Token
from ramet.grammar.pattern_expressions import whole
from ramet.grammar.vocabulary_tokenizer import special_token

SPECIAL_ID = re.compile(r"<\[(\d+)\]>")
OPERATORS = {"?": (0, 1), "*": (0, UNBOUNDED), "+": (1, UNBOUNDED)}
NO_OPTIONS = ["%llguidance", "{", "}"]
ENDS = ("|", ")", "]")


class Unreadable(Exception):
    """A grammar that makes use of what is not understood here."""


class Definition(NamedTuple):
    is_terminal: bool
    is_lazy: bool
    body: tuple[Token, ...]


def read_lark(arena: Arena, tokens: Sequence[Token], embedded: Mapping[int, int], lexemes: dict[str, int] | None = None) -> int:
    """The expression of its `start`. `embedded`: expressions of the tokens of kind json, by their places. `lexemes`: takes in what rules
    are made of, and makes each terminal a lexeme. Raises `Unreadable`."""
    reader = _Reader(arena, dict(_definitions(tokens)), embedded, lexemes)
    start = reader.read("start")
    if _recurses_left(arena):
        raise Unreadable("left recursion")
    return start


# ── definitions ──


def _definitions(tokens: Sequence[Token]) -> Iterator[tuple[str, Definition]]:
    for line in _lines(tokens):
        head, rest = line[0], line[1:]
        if [token.value for token in line] == NO_OPTIONS:
            continue
        if head.kind not in ("rule", "terminal"):
            _give_up(f"{head.value} statements")
        colon = next((at for at, token in enumerate(rest) if token.value == ":"), None)
        if colon is None:
            _give_up("a line without a colon")
        attributes = [token.value for token in rest[:colon]]
        if attributes not in ([], ["[", "lazy", "]"]):
            _give_up("attributes of rules")
        yield head.value.lstrip("!?"), Definition(head.kind == "terminal", bool(attributes), tuple(rest[colon + 1 :]))


def _lines(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Without their ends; a line that begins with | goes on with the one before it."""
    line: list[Token] = []
    for index, token in enumerate(tokens):
        if token.kind != "newline":
            line.append(token)
            continue
        following = next((later for later in tokens[index:] if later.kind != "newline"), None)
        if line and (following is None or following.value != "|"):
            yield line
            line = []
    if line:
        yield line


# ── expressions ──


class _Reader:
    def __init__(
        self, arena: Arena, definitions: Mapping[str, Definition], embedded: Mapping[int, int], lexemes: dict[str, int] | None
    ) -> None:
        self.lexemes = lexemes
        self._arena = arena
        self._definitions = definitions
        self._embedded = embedded
        self._known: dict[str, int] = {}
        self._under_way: set[str] = set()
        self._queue: list[str] = []

    def read(self, start: str) -> int:
        found = self.reference(start)
        while self._queue:
            name = self._queue.pop()
            self._arena.define(self._known[name], self._body(self._definitions[name]))
        return found

    def reference(self, name: str) -> int:
        """The expression of a rule or a terminal. Terminals are written out: they hold no references."""
        if name in self._known:
            return self._known[name]
        definition = self._definitions.get(name)
        if definition is None or name in self._under_way:
            _give_up(f"{name} undefined, or a terminal inside of itself")
        if not definition.is_terminal and not definition.is_lazy:
            self._known[name] = self._arena.new_rule()
            self._queue.append(name)
        else:
            self._under_way.add(name)
            body = self._body(definition)
            self._known[name] = self._shortest_of(body) if definition.is_lazy else body
        return self._known[name]

    def _body(self, definition: Definition) -> int:
        return _Cursor(self, self._arena, definition, self._embedded).whole()

    def is_terminal(self, name: str) -> bool:
        return name in self._definitions and self._definitions[name].is_terminal

    def _shortest_of(self, body: int) -> int:
        """Its texts that do not begin with another of them."""
        more = self._arena.rep(self._arena.word(((1 << 256) - 1,)), 1)
        return self._arena.conj((body, self._arena.negate(self._arena.seq(body, more))))


class _Cursor:
    """Reads one body from its first token to its last."""

    def __init__(self, reader: _Reader, arena: Arena, definition: Definition, embedded: Mapping[int, int]) -> None:
        self._reader = reader
        self._arena = arena
        self._body = definition.body
        self._in_terminal = definition.is_terminal or definition.is_lazy
        self._embedded = embedded
        self._at = 0

    def whole(self) -> int:
        found = self._alternatives()
        if self._at < len(self._body):
            _give_up(str(self._body[self._at].value))
        return found

    def _alternatives(self) -> int:
        options = [self._sequence()]
        while self._takes("|"):
            options.append(self._sequence())
        return self._arena.alt(options)

    def _sequence(self) -> int:
        parts: list[int] = []
        while self._at < len(self._body) and self._body[self._at].value not in ENDS:
            parts.append(self._repeated(self._atom()))
        return self._arena.seq(*parts)

    def _repeated(self, part: int) -> int:
        for operator, (low, high) in OPERATORS.items():
            if self._takes(operator):
                return self._arena.optional(part) if operator == "?" else self._arena.rep(part, low, high)
        if self._takes("{"):
            low = 0 if self._peek() == "," else self._number()
            high = low
            if self._takes(","):
                high = UNBOUNDED if self._peek() == "}" else self._number()
            self._expect("}")
            return self._arena.rep(part, low, high)
        if self._takes("~"):
            low = self._number()
            return self._arena.rep(part, low, self._number() if self._takes("..") else low)
        return part

    def _atom(self) -> int:
        token = self._next()
        if token.value in ("(", "["):
            inner = self._alternatives()
            self._expect({"(": ")", "[": "]"}[token.value])
            return inner if token.value == "(" else self._arena.optional(inner)
        found = self._piece(token)
        if self._reader.lexemes is None or self._in_terminal or token.kind not in ("string", "regex", "terminal"):
            return found
        self._reader.lexemes[token.value] = found = found if token.kind == "string" else self._arena.lexeme(found)
        return found

    def _piece(self, token: Token) -> int:
        match token.kind:
            case "string":
                return self._string(token.value)
            case "regex":
                return self._regex(token.value)
            case "rule" | "terminal" if not self._in_terminal or self._reader.is_terminal(token.value):
                return self._reader.reference(token.value)
            case "special" if SPECIAL_ID.fullmatch(token.value) and not self._in_terminal:
                return self._arena.text(special_token(int(token.value[2:-2])))
            case "json":
                return self._embedded[token.start]
        _give_up(str(token.value))

    def _string(self, text: str) -> int:
        low = json.loads(text.removesuffix("i"))
        if self._takes(".."):
            high = json.loads(self._next().value)
            if len(low) != 1 or len(high) != 1 or low > high:
                _give_up("a range of more than characters")
            return self._arena.chars(((ord(low), ord(high)),))
        return self._any_case(low) if text.endswith("i") else self._arena.text(low)

    def _any_case(self, text: str) -> int:
        if not text.isascii():
            _give_up("case beyond ASCII")
        both = [sorted({char.lower(), char.upper()}) for char in text]
        return self._arena.seq(*[self._arena.chars(tuple((ord(char), ord(char)) for char in pair)) for pair in both])

    def _regex(self, text: str) -> int:
        body, _, flags = text[1:].rpartition("/")
        if flags:
            _give_up("flags of regexes")
        try:
            return whole(self._arena, body, "python")
        except GrammarError as error:
            raise Unreadable(error.message) from error

    # ── tokens ──

    def _peek(self) -> object:
        return self._body[self._at].value if self._at < len(self._body) else None

    def _takes(self, mark: str) -> bool:
        found = self._at < len(self._body) and self._body[self._at].kind == "mark" and self._body[self._at].value == mark
        self._at += found
        return found

    def _next(self) -> Token:
        if self._at >= len(self._body):
            _give_up("a line that ends too soon")
        self._at += 1
        return self._body[self._at - 1]

    def _expect(self, mark: str) -> None:
        if not self._takes(mark):
            _give_up(f"no {mark}")

    def _number(self) -> int:
        text = self._next().value
        if not isinstance(text, str) or not text.isdecimal():
            _give_up("repetitions that are no numbers")
        return int(text)


def _give_up(what: str) -> NoReturn:
    raise Unreadable(what)


# ── left recursion ──


def _recurses_left(arena: Arena) -> bool:
    """Whether some rule can begin with itself."""
    nullable = _nullable(arena)
    done: set[int] = set()
    for start in range(len(arena.rules)):
        path = {start: _first_refs(arena, arena.rules[start], nullable)}
        while path:
            rule, following = next(reversed(path.items()))
            found = next(following, None)
            if found is None:
                done.add(rule)
                del path[rule]
            elif found in path:
                return True
            elif found not in done:
                path[found] = _first_refs(arena, arena.rules[found], nullable)
    return False


def _first_refs(arena: Arena, node: int, nullable: Sequence[bool]) -> Iterator[int]:
    """Rules that a text of `node` may begin with."""
    op, of = arena.nodes[node]
    if op == "ref":
        yield of
    elif op == "alt":
        for part in of:
            yield from _first_refs(arena, part, nullable)
    elif op == "seq":
        yield from _first_refs(arena, of[0], nullable)
        if nullable[of[0]]:
            yield from _first_refs(arena, of[1], nullable)
    elif op == "rep":
        yield from _first_refs(arena, of[0], nullable)


def _nullable(arena: Arena) -> list[bool]:
    """Of each node, whether the empty text is in it; negations aside, which stand in no rule of their own."""
    known = [False] * len(arena.nodes)
    changed = True
    while changed:
        changed = False
        for node, (op, of) in enumerate(arena.nodes):
            found = op == "epsilon"
            if op in ("seq", "conj"):
                found = all(known[part] for part in of)
            elif op == "alt":
                found = any(known[part] for part in of)
            elif op == "rep":
                found = of[1] == 0 or known[of[0]]
            elif op in ("ref", "lexeme"):
                found = known[arena.rules[of] if op == "ref" else of]
            elif op == "negate":
                found = True  # at worst: rules after it count as possible beginnings
            if found != known[node]:
                known[node] = changed = True
    return known
