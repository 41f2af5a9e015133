"""Expressions that many grammars have in common (a date, any number), made once and copied from then on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import TypeVar

from ramet.grammar.arena import Arena

MAX_KEPT = 256
MAX_NODES = 2000
"""Of an expression that is kept; about 200 bytes each."""

Key = TypeVar("Key", bound=Hashable)


def copied(make: Callable[[Arena, Key], int]) -> Callable[[Arena, Key], int]:
    """`make`, remembering like `functools.lru_cache`: for a key that has come up it copies nodes, a tenth of the work. In one arena
    equal keys are one expression, rules included. `make` must depend on nothing but the key; it is still there as `__wrapped__`."""
    known: OrderedDict[Key, _Copied] = OrderedDict()

    @wraps(make)
    def place(arena: Arena, key: Key) -> int:
        found = known.get(key)
        if found is None:
            found = _Copied(lambda scratch: make(scratch, key))
            if found.size <= MAX_NODES:
                known[key] = found
                if len(known) > MAX_KEPT:
                    known.popitem(last=False)
        return found.place(arena)

    return place


class _Copied:
    def __init__(self, make: Callable[[Arena], int]) -> None:
        arena = Arena()
        self._root = make(arena)
        self._nodes = [(index, arena.nodes[index]) for index in sorted(arena.reachable((self._root,)))]  # parts before what they are in
        self._rules = {node.of: arena.rules[node.of] for _, node in self._nodes if node.op == "ref"}

    @property
    def size(self) -> int:
        return len(self._nodes)

    def place(self, arena: Arena) -> int:
        found = arena.copies.get(self)
        if found is None:
            found = arena.copies[self] = self._copy(arena)
        return found

    def _copy(self, arena: Arena) -> int:
        refs = {rule: arena.new_rule() for rule in self._rules}
        places: dict[int, int] = {}
        for index, node in self._nodes:
            places[index] = refs[node.of] if node.op == "ref" else arena.copy(node, places)
        for rule, body in self._rules.items():
            arena.define(refs[rule], places[body])
        return places[self._root]
