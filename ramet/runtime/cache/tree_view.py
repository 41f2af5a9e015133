"""The largest parts of a radix tree, as data."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from ramet.runtime.cache.radix_tree import Node, RadixTree
from ramet.runtime.cache_view import CacheNode

_HEAD_TOKENS = 24


def largest_nodes(tree: RadixTree, most: int, seconds_since: Callable[[int], float]) -> tuple[CacheNode, ...]:
    """Up to `most` nodes, those with the largest subtrees; a parent stands before its children."""
    sizes = _subtree_sizes(tree)
    chosen: list[CacheNode] = []
    tops = [node for node in sizes if node.parent is not None and node.parent.parent is None]
    waiting = [(-sizes[node], serial, node, -1) for serial, node in enumerate(tops)]
    heapq.heapify(waiting)
    serial = len(sizes)
    while waiting and len(chosen) < most:
        size, _, node, parent = heapq.heappop(waiting)
        chosen.append(_view(node, parent, -size, seconds_since(node.last_access)))
        for child in node.children.values():
            serial += 1
            heapq.heappush(waiting, (-sizes[child], serial, child, len(chosen) - 1))
    return tuple(chosen)


def _subtree_sizes(tree: RadixTree) -> dict[Node, int]:
    nodes = list(tree.nodes())  # parents before children
    sizes = {node: len(node.key) for node in nodes}
    for node in reversed(nodes):
        if node.parent in sizes:
            sizes[node.parent] += sizes[node]
    return sizes


def _view(node: Node, parent: int, subtree_tokens: int, idle_seconds: float) -> CacheNode:
    return CacheNode(
        parent=parent,
        namespace=node.namespace,
        num_tokens=len(node.key),
        subtree_tokens=subtree_tokens,
        hits=node.hits,
        idle_seconds=idle_seconds,
        num_pins=node.num_pins,
        in_use=node.lock_count > 0,
        is_dead=node.is_dead,
        head=tuple(node.key[:_HEAD_TOKENS].tolist()),
    )
