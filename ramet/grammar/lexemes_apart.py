"""An expression → a grammar whose lexer finds every lexeme: those that would be hidden (`lexeme_conflicts`) come as characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ramet.errors import GrammarError
from ramet.grammar.arena import Arena
from ramet.grammar.by_character import by_character
from ramet.grammar.derivatives import Walker
from ramet.grammar.lark_writer import write_rules
from ramet.grammar.lexeme_conflicts import STRUCTURE, conflicts


def write_apart(walker: Walker, start: int, schemas: Mapping[int, str]) -> str:
    """Lark. `schemas`: expressions of JSON in it, and where they stand. Raises `GrammarError` where it would be too large."""
    found = conflicts(walker, start, schemas)
    where = next((place for schema, place in schemas.items() if schema in found), "/format")
    terminals = list(dict.fromkeys(_terminals(walker, found)))
    named = {terminal: f"c{terminal}" for terminal in terminals}
    try:
        lines = [line for terminal in terminals for line in _characters(walker, terminal, named[terminal])]
    except GrammarError as error:
        raise GrammarError(f"structural_tag: {error.message}", where=where, param="structural_tag") from error
    expression, rules = write_rules(walker, start, named=named)
    return "\n".join((f"start: {expression}", *rules, *lines))


def _terminals(walker: Walker, pieces: Iterable[int]) -> Iterator[int]:
    """What the writer has a terminal for in each piece, if it has more than one character."""
    arena, seen, queue = walker.arena, set[int](), sorted(pieces)
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        op, of = arena.nodes[node]
        if op in STRUCTURE or op == "fresh":
            queue += (arena.rules[of],) if op == "ref" else arena.parts(node)
        elif not _is_one_character(arena, terminal := of if op == "lexeme" else node) and not walker.is_empty(terminal):
            yield terminal


def _is_one_character(arena: Arena, node: int) -> bool:
    op, of = arena.nodes[node]
    return op == "chars" and not of[1]


def _characters(walker: Walker, terminal: int, name: str) -> Iterator[str]:
    arena = Arena()
    start = by_character(walker, terminal, arena)
    expression, rules = write_rules(Walker(arena), start, prefix=f"{name}_")
    yield f"{name}: {expression}"
    yield from rules
