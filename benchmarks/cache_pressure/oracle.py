"""Bélády's rule for a tree: evict the leaf whose next use is farthest, known from a run that was recorded before."""

from __future__ import annotations

from collections import defaultdict

from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.cache.radix_tree import Node

_NEVER = float("inf")


class ClairvoyantCache(PrefixCache):
    """`future`: the prompts of all requests with the times at which they came in a run with room for everything. Outputs depend on
    prompts alone, so the same prompts come here, in another order maybe; those not looked up yet are the future."""

    def __init__(self, num_pages: int, future: list[tuple[float, bytes]]) -> None:
        super().__init__(num_pages, 1, "lru")
        self._future = sorted(future)
        self._is_past = [False] * len(future)
        self._places: defaultdict[bytes, list[int]] = defaultdict(list)
        for place, (_, prompt) in reversed(list(enumerate(self._future))):
            self._places[prompt].append(place)
        self._users: dict[Node, tuple[bytes, list[int]]] = {}  # of each leaf: how its path begins to be its own, and who needs that

    def note(self, prompt: bytes) -> None:
        self._is_past[self._places[prompt].pop()] = True

    def _evict(self, num_pages: int) -> None:
        while num_pages > 0:
            leaf = max((node for node in self.tree.nodes() if node.is_idle_leaf), key=self._next_use)
            freed = self.tree.trim(leaf, num_pages)
            self.allocator.free(freed)
            self.counters.evicted += len(freed)
            num_pages -= len(freed)

    def _next_use(self, leaf: Node) -> tuple[float, int]:
        begins, users = self._users.get(leaf, (b"", []))
        start = sum(len(node.key) for node in _from_root(leaf)) - len(leaf.key)
        if len(begins) != start + 1:
            path = bytes(token for node in _from_root(leaf) for token in node.key.tolist())
            begins = path[: start + 1]
            users = [place for place, (_, prompt) in enumerate(self._future) if prompt.startswith(begins)]
            self._users[leaf] = begins, users
        return next((self._future[place][0] for place in users if not self._is_past[place]), _NEVER), -leaf.last_access


def _from_root(leaf: Node) -> list[Node]:
    nodes = []
    node: Node | None = leaf
    while node is not None:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]
