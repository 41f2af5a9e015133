"""Strongly connected components of a graph: which nodes lead to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator


def components(num_nodes: int, edges: Callable[[int], Iterable[int]]) -> list[int]:
    """Of each node 0 … num_nodes - 1 the number of its component (Tarjan's algorithm, with a stack of its own)."""
    order, low, found = [-1] * num_nodes, [0] * num_nodes, [-1] * num_nodes
    open_nodes: list[int] = []
    num_seen = num_found = 0
    for start in range(num_nodes):
        path: list[tuple[int, Iterator[int]]] = [(start, iter(edges(start)))] if order[start] < 0 else []
        while path:
            node, following = path[-1]
            if order[node] < 0:
                order[node] = low[node] = num_seen
                num_seen += 1
                open_nodes.append(node)
            for child in following:
                if order[child] < 0:
                    path.append((child, iter(edges(child))))
                    break
                if found[child] < 0:
                    low[node] = min(low[node], order[child])
            else:
                path.pop()
                if low[node] == order[node]:
                    while found[node] < 0:
                        found[open_nodes.pop()] = num_found
                    num_found += 1
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
    return found


def circles(num_nodes: int, edges: Callable[[int], Iterable[int]]) -> list[list[int]]:
    """The nodes of each component, in order; components after those that they lead to."""
    component = components(num_nodes, edges)
    found: list[list[int]] = [[] for _ in range(max(component, default=-1) + 1)]
    for node, number in enumerate(component):
        found[number].append(node)
    return found
