"""How long an ending may have to be."""

from __future__ import annotations

from ramet.grammar.arena import NONE
from ramet.grammar.derivatives import INFINITE, Walker

MAX_ROUNDS = 64
MAX_STATES = 300


def longest_ending(walker: Walker, start: int) -> int:
    """A bound on `walker.shortest` over all places that texts of `start` lead to; INFINITE for nested languages, which have none, and
    where none is found in reasonable time. Of a fixpoint that still grows after `MAX_ROUNDS` it is taken that it grows forever."""
    return LongestEndings(walker).of(start)


class LongestEndings:
    """`longest_ending` of every place, also of those that come up as texts are walked. The rules of the arena are settled."""

    def __init__(self, walker: Walker) -> None:
        self._walker = walker
        self._worst = [0] * len(walker.arena.nodes)
        self._is_bounded = self._settle()

    def of(self, node: int) -> int:
        if not self._is_bounded:
            return INFINITE
        for later in range(len(self._worst), len(self._walker.arena.nodes)):  # it stands on older ones
            self._worst.append(0)
            self._worst[later] = _worst(self._walker, self._worst, later)
        return max(self._worst[node], self._walker.shortest(node))

    def _settle(self) -> bool:
        """Least fixpoint over the rules; False when there is none in sight."""
        for _ in range(MAX_ROUNDS):
            changed = False
            for node in range(len(self._worst)):
                found = _worst(self._walker, self._worst, node)
                if found != self._worst[node]:
                    self._worst[node], changed = found, True
            if not changed:
                return True
        return False


def _worst(walker: Walker, worst: list[int], node: int) -> int:
    op, of = walker.arena.nodes[node]
    found = 0
    if op == "seq":
        found = max(worst[of[0]] + walker.shortest(of[1]), worst[of[1]])
    elif op == "alt":
        found = max((worst[part] for part in of if not walker.is_empty(part)), default=0)
    elif op in ("text", "word"):
        found = len(of)
    elif op == "rep":
        found = worst[of[0]] + max(of[1] - 1, 0) * walker.shortest(of[0])
    elif op in ("conj", "negate"):
        found = worst[node] or _explored(walker, node)
    elif op == "chars":
        found = 12 if of[1] else 4
    elif op in ("ref", "lexeme"):
        found = worst[walker.arena.rules[of] if op == "ref" else of]
    return min(found, INFINITE)


def _explored(walker: Walker, start: int) -> int:
    seen, queue = {start}, [start]
    while queue:
        node = queue.pop()
        for byte in walker.representatives(node):
            following = walker.step(node, byte)
            if following not in seen and following != NONE and not walker.is_empty(following):
                seen.add(following)
                queue.append(following)
        if len(seen) > MAX_STATES:
            return INFINITE
    most = max((walker.shortest(node) for node in seen if not walker.is_empty(node)), default=1)
    return max(most, 1)  # 0 would say that it was not explored
