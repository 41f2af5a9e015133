"""In which order waiting requests are considered: one function per policy.

Each takes the waiting requests in order of arrival and returns those to try, in order. Requests that were retracted are not
among them: they go first under every policy. Orders that follow the cache look only at the first `WINDOW` requests, so that a long
queue does not cost a long step, and a request that was overtaken too often goes first, so that nothing starves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.radix_tree import Node
from ramet.runtime.scheduler.request_state import RequestState

WINDOW = 256


@dataclass(slots=True)
class PolicyContext:
    """What an order may look at. `num_admissions` counts since the start."""

    cache: Cache
    rng: random.Random
    max_overtakes: int
    num_admissions: int = 0

    def cached_len(self, state: RequestState) -> int:
        """Cached prefix of a waiting request; looked up again only when the tree has changed."""
        version, length = state.peeked
        if version != self.cache.tree.version:
            length = self.cache.peek(state.request.cache_namespace, state.reusable)
            state.peeked = (self.cache.tree.version, length)
        return length

    def is_overdue(self, state: RequestState, patience: int = 1) -> bool:
        """At least `patience` · `max_overtakes` requests that came later were admitted before it."""
        return self.num_admissions - state.admissions_before - state.queue_ahead >= patience * self.max_overtakes


SortKey = tuple[int, ...]
Order = Callable[[Iterable[RequestState], PolicyContext], Iterable[RequestState]]


def fcfs(waiting: Iterable[RequestState], context: PolicyContext) -> Iterable[RequestState]:
    """First come, first served."""
    return waiting


def lpm(waiting: Iterable[RequestState], context: PolicyContext) -> Iterable[RequestState]:
    """Longest cached prefix first."""
    return _aged(islice(waiting, WINDOW), context, lambda state: (-context.cached_len(state),))


def dfs_weight(waiting: Iterable[RequestState], context: PolicyContext) -> Iterable[RequestState]:
    """Depth first through the tree, the branch with the most waiting requests first: requests of one branch run together."""
    window = list(islice(waiting, WINDOW))
    paths = {state.arrival: _path(state, context) for state in window}
    weights: dict[Node, int] = {}
    for path in paths.values():
        for node in path:
            weights[node] = weights.get(node, 0) + 1
    return _aged(window, context, lambda state: tuple(n for node in paths[state.arrival] for n in (-weights[node], id(node))))


def shuffled(waiting: Iterable[RequestState], context: PolicyContext) -> Iterable[RequestState]:
    """Any order."""
    window = list(islice(waiting, WINDOW))
    context.rng.shuffle(window)
    return _aged(window, context, lambda state: ())


def lof(waiting: Iterable[RequestState], context: PolicyContext) -> Iterable[RequestState]:
    """Longest output first."""
    return _aged(waiting, context, lambda state: (-state.max_outputs,))


def program(waiting: Iterable[RequestState], context: PolicyContext) -> Iterable[RequestState]:
    """What the compiler knows: the run that is nearest to its end first, within a run the longest path, then what can last longest.
    Where nothing is known every request is a run's last, and all are taken in the order in which `WaitingQueue` shows them: along the
    tree of prompts. It also sees to it that nothing starves."""
    window = list(islice(waiting, WINDOW))
    left: dict[str, int] = {}
    for state in window:
        left[state.request.group] = max(left.get(state.request.group, 1), state.request.path)
    left[""] = 1
    return sorted(window, key=lambda state: (left[state.request.group], -state.request.path, -_bound(state)))


def priority(waiting: Iterable[RequestState], context: PolicyContext) -> Iterable[RequestState]:
    """Highest priority first, first come first served within one; low priorities may wait for ever, as they are asked to."""
    return sorted(waiting, key=lambda state: -state.request.priority)


POLICIES: Mapping[str, Order] = MappingProxyType(
    {"program": program, "fcfs": fcfs, "lpm": lpm, "dfs-weight": dfs_weight, "random": shuffled, "lof": lof, "priority": priority}
)


def _aged(waiting: Iterable[RequestState], context: PolicyContext, key: Callable[[RequestState], SortKey]) -> Iterable[RequestState]:
    """Sort by `key`, with the overdue in front in order of arrival."""
    overdue: list[RequestState] = []
    others: list[RequestState] = []
    for state in waiting:
        (overdue if context.is_overdue(state) else others).append(state)
    others.sort(key=key)
    return overdue + others


def _bound(state: RequestState) -> int:
    return state.most_outputs if state.request.group else 0


def _path(state: RequestState, context: PolicyContext) -> list[Node]:
    """Nodes from the root down to the end of the request's cached prefix."""
    path: list[Node] = []
    node = context.cache.peek_node(state.request.cache_namespace, state.reusable)
    while node is not None:
        path.append(node)
        node = node.parent
    return path[::-1]
