"""Which cached prefix goes first: one function per policy, and the queue that applies it to the leaves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ramet.runtime.cache.radix_tree import Node

EvictionKey = tuple[int, ...]
EvictionPolicy = Callable[[Node], EvictionKey]
"""The smallest key goes first. A key that shrinks while its leaf is idle must be told by `push`; that it has grown is found out."""


def lru(node: Node) -> EvictionKey:
    """Least recently used."""
    return (node.last_access,)


def lfu(node: Node) -> EvictionKey:
    """Least often used; among equals the least recently used."""
    return (node.hits, node.last_access)


def fifo(node: Node) -> EvictionKey:
    """Oldest."""
    return (node.created,)


def next_use(node: Node) -> EvictionKey:
    """What a program has done with goes first, then the least recently used of what nobody has said anything about, then what is pinned,
    the farthest next use first."""
    if node.pins:
        return (2, -int(min(pin.next_use for pin in node.pins.values()) * 1e6))
    return (0 if node.is_dead else 1, node.last_access)


EVICTION_POLICIES: Mapping[str, EvictionPolicy] = MappingProxyType({"next-use": next_use, "lru": lru, "lfu": lfu, "fifo": fifo})


class EvictionQueue:
    """Idle leaves in the order of a policy, each at most once; O(log n) to add and to take.

    Entries are not searched for when a leaf is used again or locked: they are checked, and put right, when they come up.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._heap: list[tuple[EvictionKey, int, Node]] = []
        self._serial = 0
        self._num_stale = 0

    def push(self, node: Node) -> None:
        """Add a leaf, or look again at one that is here."""
        key = self._policy(node)
        if node.entry is not None:
            if node.entry[0] <= key:
                return
            self._num_stale += 1
            if self._num_stale > len(self._heap) // 2:
                self._sweep()
        self._serial += 1
        node.entry = (key, self._serial)
        heapq.heappush(self._heap, (key, self._serial, node))

    def pop(self) -> Node | None:
        """Take the leaf that should go next; None when nothing is evictable."""
        while self._heap:
            key, serial, node = heapq.heappop(self._heap)
            if node.entry is None or node.entry[1] != serial:
                self._num_stale -= 1
                continue
            node.entry = None
            if not node.is_idle_leaf:
                continue  # locked, grown or gone; it is pushed anew when it becomes idle
            if self._policy(node) == key:
                return node
            self.push(node)
        return None

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].entry is not None and entry[2].entry[1] == entry[1]]
        heapq.heapify(self._heap)
        self._num_stale = 0
