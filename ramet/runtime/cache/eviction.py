"""Which cached prefix goes first: one function per policy, and the queue that applies it to the leaves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ramet.runtime.cache.radix_tree import Node

EvictionKey = tuple[int, ...]
EvictionPolicy = Callable[[Node], EvictionKey]
"""The smallest key goes first. A node's key may only grow while it is cached: the queue relies on it."""


def lru(node: Node) -> EvictionKey:
    """Least recently used."""
    return (node.last_access,)


def lfu(node: Node) -> EvictionKey:
    """Least often used; among equals the least recently used."""
    return (node.hits, node.last_access)


def fifo(node: Node) -> EvictionKey:
    """Oldest."""
    return (node.created,)


EVICTION_POLICIES: Mapping[str, EvictionPolicy] = MappingProxyType({"lru": lru, "lfu": lfu, "fifo": fifo})


class EvictionQueue:
    """Idle leaves in the order of a policy, each at most once; O(log n) to add and to take.

    Entries are not searched for when a leaf is used again or locked: they are checked, and put right, when they come up.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._heap: list[tuple[EvictionKey, int, Node]] = []
        self._serial = 0

    def push(self, node: Node) -> None:
        if node.is_queued:
            return
        node.is_queued = True
        self._serial += 1
        heapq.heappush(self._heap, (self._policy(node), self._serial, node))

    def pop(self) -> Node | None:
        """Take the leaf that should go next; None when nothing is evictable."""
        while self._heap:
            key, _, node = heapq.heappop(self._heap)
            node.is_queued = False
            if not node.is_idle_leaf:
                continue  # locked, grown or gone; it is pushed anew when it becomes idle
            if self._policy(node) == key:
                return node
            self.push(node)
        return None
