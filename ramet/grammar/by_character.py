"""A regular expression as rules in which each character is a lexeme: for where lexers, which take the longest lexeme, would go wrong."""

from __future__ import annotations

from itertools import pairwise

from ramet.errors import GrammarError
from ramet.grammar.arena import NONE, Arena
from ramet.grammar.automaton_rules import Ways, automaton_expression
from ramet.grammar.char_ranges import Ranges, union
from ramet.grammar.derivatives import Walker

MAX_STEPS = 50_000
"""Ways from one state to another, in all."""
SURROGATES = (0xD800, 0xE000)


def by_character(walker: Walker, node: int, arena: Arena) -> int:
    """The texts of `node`, of the walker's arena, as an expression in `arena`."""
    edges = _edges(walker, node)
    ways: dict[int, Ways[int]] = {}
    queue, num_steps = [node], 0
    while queue:
        state = queue.pop()
        if state in ways:
            continue
        steps: dict[int, Ranges] = {}
        for low, high in pairwise(sorted({*edges, *(cut for cut in walker.cuts(state) if cut < 0x80)})):
            following = walker.walk(state, chr(low).encode()) if low != SURROGATES[0] else NONE
            if following != NONE:
                steps[following] = union((*steps.get(following, ()), (low, high - 1)))
        num_steps += len(edges)
        if num_steps > MAX_STEPS:
            raise GrammarError(f"cannot be told apart from what may stand around it in {MAX_STEPS} steps")
        ways[state] = Ways(walker.nullable(state), steps)
        queue += steps
    return automaton_expression(arena, ways, node)


def _edges(walker: Walker, node: int) -> list[int]:
    """Where classes of characters begin that the expression cannot tell apart; of ASCII this depends on the place."""
    found = {0, 0x80, *SURROGATES, 0x110000}
    for part in walker.arena.reachable([node]):
        op, of = walker.arena.nodes[part]
        if op == "chars":
            found.update(edge for low, high in of[0] for edge in (low, high + 1))
        elif op == "text":
            found.update(edge for char in of.encode("latin-1").decode("utf-8") for edge in (ord(char), ord(char) + 1))
    return sorted(edge for edge in found if edge >= 0x80 or edge == 0)
