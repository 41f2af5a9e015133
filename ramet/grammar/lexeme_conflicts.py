"""Which lexemes of an expression the engine would not find: its lexer takes the longest one, and does not go back.

A lexeme that goes on where another may end and something else may begin hides that. All ways through the lexemes are followed at once, byte
by byte, as the engine does it: what may be under way together, and whether anything begins where anything else goes on. A schema counts as
one piece here: its own lexemes do not hide each other, and its text ends where it ends, but for numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from ramet.grammar.derivatives import Walker

MAX_STATES = 4000
NUMBER: tuple[tuple[int, int], ...] = ((0x2B, 0x2B), (0x2D, 0x2E), (0x30, 0x39), (0x45, 0x45), (0x65, 0x65))
DIGITS = range(0x30, 0x3A)
STRUCTURE = frozenset({"seq", "alt", "rep", "ref", "epsilon"})
Threads = frozenset[tuple[int, int]]
"""What is under way: (lexeme, what is left of it)."""


def conflicts(walker: Walker, start: int, schemas: Iterable[int]) -> frozenset[int]:
    """Lexemes, and schemas, that hide something or are hidden. Written character by character, all of these, they are what they say."""
    return _Lexer(walker, start, frozenset(schemas)).conflicts()


class Places:
    """Which pieces (lexemes, and schemas as a whole) may come first, and after which."""

    def __init__(self, walker: Walker, start: int, schemas: frozenset[int]) -> None:
        self._walker = walker
        self._arena = walker.arena
        self._schemas = schemas
        self._first: dict[int, frozenset[int]] = {}
        self.after: dict[int, frozenset[int]] = {}
        self._settle(start)
        self.first = self._first.get(start, frozenset())
        self._visited: dict[int, frozenset[int]] = {}
        self._visit(start, frozenset())

    def _settle(self, start: int) -> None:
        nodes, queue = set[int](), [start]
        while queue:
            node = queue.pop()
            if node not in nodes:
                nodes.add(node)
                queue += self._inside(node)
        changed = True
        while changed:
            changed = False
            for node in sorted(nodes):  # parts are older than what is made of them
                found = self._first_of(node)
                changed |= found != self._first.get(node)
                self._first[node] = found

    def _is_piece(self, node: int) -> bool:
        return node in self._schemas or self._arena.nodes[node].op not in STRUCTURE

    def _inside(self, node: int) -> tuple[int, ...]:
        if self._is_piece(node):
            return ()
        op, of = self._arena.nodes[node]
        return (self._arena.rules[of],) if op == "ref" else self._arena.parts(node)

    def _first_of(self, node: int) -> frozenset[int]:
        if self._is_piece(node):
            return frozenset({node})
        inside = self._inside(node)
        if self._arena.nodes[node].op == "seq" and not self._walker.nullable(inside[0]):
            inside = inside[:1]
        return frozenset[int]().union(*(self._first.get(part, frozenset()) for part in inside))

    def _visit(self, node: int, after: frozenset[int]) -> None:
        known = self._visited.get(node)
        if known is not None and after <= known:
            return
        self._visited[node] = after = after | (known or frozenset())
        op, of = self._arena.nodes[node]
        if self._is_piece(node):
            self.after[node] = after
        elif op == "seq":
            self._visit(of[1], after)
            self._visit(of[0], self._first[of[1]] | (after if self._walker.nullable(of[1]) else frozenset()))
        elif op == "rep":
            self._visit(of[0], after | (self._first[of[0]] if of[2] != 1 else frozenset()))
        else:
            for part in self._inside(node):
                self._visit(part, after)


class _Lexer:
    def __init__(self, walker: Walker, start: int, schemas: frozenset[int]) -> None:
        self._walker = walker
        self._schemas = schemas
        self._places = Places(walker, start, schemas)
        digits = walker.arena.chars(NUMBER)
        self._after = {piece: self._begun(after) for piece, after in self._places.after.items()}
        for schema in filter(self._ends_in_number, schemas):
            rest = ~schema  # the characters of a number that goes on, each a lexeme
            self._after[schema] = self._after[rest] = self._after[schema] | {(rest, digits)}
        self._found: set[int] = set()
        self._together: dict[int, set[int]] = {piece: set() for piece in self._after}

    def conflicts(self) -> frozenset[int]:
        first: tuple[Threads, Threads] = frozenset(), self._begun(self._places.first)
        seen, queue = {first}, [first]
        while queue:
            for state in self._following(*queue.pop()):
                if state not in seen:
                    seen.add(state)
                    queue.append(state)
            if len(seen) > MAX_STATES:
                return frozenset(self._places.after)
        return self._with_company()

    def _begun(self, pieces: Iterable[int]) -> Threads:
        return frozenset((piece, piece) for piece in pieces)

    def _following(self, going: Threads, fresh: Threads) -> Iterable[tuple[Threads, Threads]]:
        """The states after one byte more: what goes on, and what may begin."""
        edges = sorted({0, 256}.union(*(self._walker.cuts(rest) for _, rest in going | fresh)))
        for byte, _ in pairwise(edges):
            gone_on, begun = self._stepped(going, byte), self._stepped(fresh, byte)
            running = gone_on | begun
            if gone_on and begun:
                self._found |= {piece for piece, rest in going if self._walker.nullable(rest)} | {piece for piece, _ in running}
            if running:
                yield self._at_end(running)

    def _stepped(self, threads: Threads, byte: int) -> Threads:
        stepped = ((piece, self._walker.step(left, byte)) for piece, left in threads)
        return frozenset((piece, rest) for piece, rest in stepped if not self._walker.is_empty(rest))

    def _at_end(self, running: Threads) -> tuple[Threads, Threads]:
        """What goes on of `running`, and what may begin behind it. Schemas are at their end at once: nothing else may go on beside them."""
        pieces = frozenset(piece for piece, _ in running)
        for piece in pieces:
            self._together[piece] |= pieces
        schemas = pieces & self._schemas
        if schemas and any(piece >= 0 for piece in pieces - schemas):
            self._found |= pieces
        ended = schemas or {piece for piece, rest in running if self._walker.nullable(rest)}
        return frozenset() if schemas else running, Threads().union(*(self._after[piece] for piece in ended))

    def _with_company(self) -> frozenset[int]:
        """A piece that comes as characters must not run beside one that comes as a whole."""
        found, queue = set[int](), [*self._found]
        while queue:
            piece = queue.pop()
            if piece not in found:
                found.add(piece)
                queue += self._together[piece]
        return frozenset(self._places.after if found & self._schemas else (piece for piece in found if piece >= 0))

    def _ends_in_number(self, schema: int) -> bool:
        seen, queue = set[int](), [schema]
        while queue:
            node = queue.pop()
            if node in seen:
                continue
            seen.add(node)
            op, of = self._walker.arena.nodes[node]
            if op == "seq":
                queue += of if self._walker.nullable(of[1]) else of[1:]
            elif op == "ref":
                queue.append(self._walker.arena.rules[of])
            elif op in ("alt", "rep", "fresh"):
                queue += self._walker.arena.parts(node)
            elif any(self._walker.matches(node, bytes((digit,))) for digit in DIGITS):
                return True
        return False
