"""What program runs say of their KV, and what can be inferred, as pins in the cache: the prefix that a run will go on from is evicted last.

A pin is made when a run pauses for its host (told by `KvHint`), and when a generation ends that is not the last of its program (known
from `Request.path`). Its next use is expected after as long as such pauses last on average; when a request arrives that goes on from it,
the next use is now. Pins end with the run, with the last use, or after `pin_seconds`; beyond a share of the pool the farthest are given up.
They never stop an eviction that is needed: only requests of runs that have not begun wait for room that is not pinned. A run of which
nobody tells the end (an interpreted one, on a client) is over when it has been silent for long.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.radix_tree import Node, Pin
from ramet.runtime.request import KvHint
from ramet.runtime.scheduler.request_state import RequestState

_FIRST_GAP_SECONDS = 0.05
_FIRST_HOST_SECONDS = 1.0
_SILENT_SECONDS = 600.0
_WEIGHT = 0.1


class KvLifetimes:
    """`clock` is the scheduler's. `num_revoked` counts pins given up for the share's sake."""

    def __init__(self, cache: Cache, clock: Callable[[], float], pin_seconds: float, pin_share: float, pool_tokens: int) -> None:
        self._cache = cache
        self._clock = clock
        self._pin_seconds, self._forget_after = pin_seconds, max(pin_seconds, _SILENT_SECONDS)
        self._most_tokens = int(pin_share * pool_tokens)
        self._runs: dict[str, dict[int, Pin]] = {}  # of each run that has begun, its pins by id
        self._last_admitted: OrderedDict[str, float] = OrderedDict()  # the most silent run first
        self._expiries: list[tuple[float, int, Pin]] = []
        self._expected = {False: _FIRST_GAP_SECONDS, True: _FIRST_HOST_SECONDS}  # seconds of a pause, by whether the host works
        self.num_revoked = 0

    def has_begun(self, run_id: str) -> bool:
        return run_id in self._runs

    def hint(self, hint: KvHint) -> None:
        if hint.kind == "end":
            self._end(hint.run_id)
            return
        tokens = np.array(hint.token_ids, dtype=np.int32)
        if hint.kind == "free":
            self._cache.bury(hint.run_id, hint.cache_namespace, tokens)
        elif self._most_tokens and self._cache.peek(hint.cache_namespace, tokens):
            node, _ = self._cache.tree.match(hint.cache_namespace, tokens)
            self._pin(hint.run_id, node, waits_for_host=True)

    def arrived(self, state: RequestState) -> None:
        """What `state` goes on from is used as soon as it is admitted."""
        run, now = state.request.group, self._clock()
        if not self._runs.get(run):
            return
        node = self._cache.peek_node(state.request.cache_namespace, state.reusable)
        is_nearest = True
        while node is not None:
            pin = node.pins.get(run)
            if pin is not None:
                if is_nearest:
                    self._learn(pin, now)
                pin.next_use = min(pin.next_use, now)
                pin.expires = now + self._pin_seconds
                is_nearest = False
            node = node.parent

    def admitted(self, state: RequestState) -> None:
        run, now = state.request.group, self._clock()
        if not run:
            return
        self._runs.setdefault(run, {})
        self._last_admitted[run] = now
        self._last_admitted.move_to_end(run)
        while now - self._last_admitted[most_silent := next(iter(self._last_admitted))] > self._forget_after:
            self._end(most_silent)

    def ended(self, state: RequestState) -> None:
        """The request's tokens are cached up to its lease's node, and it is about to leave."""
        request, lease = state.request, state.lease
        goes_on = request.path > 1 or state.max_outputs == 0
        if request.group in self._runs and goes_on and self._most_tokens and lease is not None and lease.node is not None:
            self._pin(request.group, lease.node, waits_for_host=False)

    def tokens_wanted_soon(self) -> int:
        """Pinned, held by no request, and by runs that do not wait for their host."""
        nodes: set[Node] = set()
        for pin in (pin for pins in self._runs.values() for pin in pins.values() if not pin.waits_for_host):
            node = pin.node
            while node is not None and node.parent is not None and node not in nodes:
                nodes.add(node)
                node = node.parent
        return sum(len(node.key) for node in nodes if not node.lock_count)

    def expire(self) -> None:
        """Give up the pins whose time is over."""
        if not self._expiries:
            return
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            _, serial, pin = heapq.heappop(self._expiries)
            if pin.node is None:
                self._runs.get(pin.owner, {}).pop(id(pin), None)
            elif pin.expires > now:
                heapq.heappush(self._expiries, (pin.expires, serial, pin))
            else:
                self._give_up(pin)

    def forget(self) -> None:
        """The cache was emptied."""
        for pins in self._runs.values():
            pins.clear()
        self._expiries.clear()

    def _end(self, run_id: str) -> None:
        self._last_admitted.pop(run_id, None)
        for pin in self._runs.pop(run_id, {}).values():
            self._cache.unpin(pin)

    def _pin(self, run_id: str, node: Node, *, waits_for_host: bool) -> None:
        now = self._clock()
        next_use = now + self._expected[waits_for_host]
        pin = self._cache.pin(run_id, node, next_use, now, now + self._pin_seconds)
        if pin is None:
            return
        pin.waits_for_host = waits_for_host
        self._runs.setdefault(run_id, {})[id(pin)] = pin
        heapq.heappush(self._expiries, (pin.expires, id(pin), pin))
        self._keep_to_share()

    def _keep_to_share(self) -> None:
        if self._cache.pinned_tokens <= self._most_tokens:
            return
        farthest = sorted((pin for pins in self._runs.values() for pin in pins.values()), key=lambda pin: pin.next_use)
        while farthest and self._cache.pinned_tokens > self._most_tokens:
            pin = farthest.pop()
            self.num_revoked += pin.node is not None
            self._give_up(pin)

    def _give_up(self, pin: Pin) -> None:
        self._cache.unpin(pin)
        self._runs.get(pin.owner, {}).pop(id(pin), None)

    def _learn(self, pin: Pin, now: float) -> None:
        expected = self._expected[pin.waits_for_host]
        self._expected[pin.waits_for_host] = expected + _WEIGHT * (now - pin.since - expected)
