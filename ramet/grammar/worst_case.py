"""How long an ending may have to be."""

from __future__ import annotations

from ramet.grammar.arena import INFINITE, NONE
from ramet.grammar.char_ranges import ALL
from ramet.grammar.components import components
from ramet.grammar.derivatives import TEXTS, Walker, settle

MAX_STATES = 300
MAX_SPELLING = 12
"""Bytes of a character in a JSON string."""
UNKNOWN = -1


class LongestEndings:
    """Of a place: a bound on `walker.shortest` over all places that its texts lead to; INFINITE for nested languages, which have none, and
    where none is found in reasonable time. Also of places that come up as texts are walked. `settled`: that of another one, on the same
    language."""

    def __init__(self, walker: Walker, settled: list[int] | None = None) -> None:
        self._walker = walker
        self._settled = [UNKNOWN] * walker.num_settled if settled is None else settled
        self._later: dict[int, int] = {}
        self._explored: dict[int, int] = {}
        self._is_bounded = self._settle() if settled is None else bool(settled)

    @property
    def settled(self) -> list[int]:
        """Of the nodes that were there when the rules were settled, as far as they have been asked for; [] where there is no bound."""
        return self._settled if self._is_bounded else []

    def of(self, node: int) -> int:
        return max(self._worst(node), self._walker.shortest(node)) if self._is_bounded else INFINITE

    def _settle(self) -> bool:
        """Least fixpoint over the rules, if there is one."""
        if self._grows():
            return False
        for node, (op, of) in enumerate(self._walker.arena.nodes[: len(self._settled)]):
            if op in TEXTS:
                self._settled[node] = len(of)
        for group in self._walker.groups:
            for node in group.nodes:
                self._settled[node] = 0
        for group in self._walker.groups:
            settle(self._settled, self._bound, group)
        return True

    def _grows(self) -> bool:
        """Whether some place comes up again inside of itself with something still to be written behind it."""
        arena, walker = self._walker.arena, self._walker
        if walker.series.is_needed:
            return True  # its places are as many as its texts
        nodes = [node for group in walker.groups if group.is_circle for node in group.nodes if not walker.is_empty(node)]
        place = {node: index for index, node in enumerate(nodes)}

        def inside(index: int) -> list[int]:
            op, of = arena.nodes[nodes[index]]
            return [place[part] for part in ((arena.rules[of],) if op == "ref" else arena.parts(nodes[index])) if part in place]

        component = components(len(nodes), inside)
        for index, node in enumerate(nodes):
            op, of = arena.nodes[node]
            behind = walker.shortest(of[1]) if op == "seq" else (of[1] - 1) * walker.shortest(of[0]) if op == "rep" else 0
            if behind > 0 and of[0] in place and component[place[of[0]]] == component[index]:
                return True
        return False

    def _worst(self, node: int) -> int:
        """Nodes without rules, and those that came after the rules were settled, are looked at when they are asked for."""
        if node < len(self._settled):
            if self._settled[node] == UNKNOWN:
                self._settled[node] = self._bound(node)
            return self._settled[node]
        if node not in self._later:
            self._later[node] = self._bound(node)
        return self._later[node]

    def _bound(self, node: int) -> int:
        """From the bounds of what it is made of."""
        walker, worst = self._walker, self._worst
        op, of = walker.arena.nodes[node]
        found = 0
        if op == "seq":
            found = max(worst(of[0]) + walker.shortest(of[1]), worst(of[1]))
        elif op == "alt":
            found = max((worst(part) for part in of if not walker.is_empty(part)), default=0)
        elif op in ("text", "word"):
            found = len(of)
        elif op == "rep":
            found = worst(of[0]) + max(of[1] - 1, 0) * walker.shortest(of[0])
        elif op == "conj" and (part := self._beside_length(of)) is not None:
            found = MAX_SPELLING * (worst(part) + 2)
        elif op in ("conj", "negate"):
            found = self._explore(node)
        elif op == "chars":
            found = MAX_SPELLING if of[1] else len(chr(of[0][-1][1]).encode())
        elif op in ("ref", "lexeme"):
            found = worst(walker.arena.rules[of] if op == "ref" else of)
        return min(found, INFINITE)

    def _beside_length(self, parts: tuple[int, ...]) -> int | None:
        """Of an intersection of one expression with greatest lengths, that expression. From a place in it, its own shortest ending fits; or
        some ending has fewer characters than that one has bytes. Before either, a character may have to be finished."""
        others = [part for part in parts if not self._is_length(part)]
        return others[0] if len(others) == 1 and self._walker.arena.nodes[others[0]].op != "negate" else None

    def _is_length(self, node: int) -> bool:
        """Any characters, up to a number of them, perhaps behind the rest of one."""
        op, of = self._walker.arena.nodes[node]
        if op == "seq":
            return self._is_rest(of[0]) and self._is_length(of[1])
        if op == "rep":
            part = self._walker.arena.nodes[of[0]]
            return bool(of[1] == 0 and part.op == "chars" and part.of[0] == ALL)
        return self._is_rest(node)

    def _is_rest(self, node: int) -> bool:
        """Of a character's spelling."""
        op, of = self._walker.arena.nodes[node]
        return op in ("word", "epsilon") or (op == "alt" and all(self._walker.arena.nodes[part].op in ("word", "epsilon") for part in of))

    def _explore(self, start: int) -> int:
        """By walking. What was found of a place holds for all that it leads to."""
        if start not in self._explored:
            seen = self._reachable(start)
            is_too_much = len(seen) > MAX_STATES
            lengths = [] if is_too_much else [self._walker.shortest(node) for node in seen if not self._walker.is_empty(node)]
            bound = INFINITE if is_too_much else max(lengths, default=1)
            self._explored.update({node: bound for node in seen if node not in self._explored})
        return self._explored[start]

    def _reachable(self, start: int) -> set[int]:
        """Until they are more than `MAX_STATES`. Dead ends count: to know one takes a search."""
        seen, queue = {start}, [start]
        while queue and len(seen) <= MAX_STATES:
            node = queue.pop()
            for byte in self._walker.representatives(node):
                following = self._walker.step(node, byte)
                if following not in seen and following != NONE:
                    seen.add(following)
                    queue.append(following)
        return seen
