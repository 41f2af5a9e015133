"""The requests that wait, by program run, so that no run hides another one from the policy."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from ramet.runtime.scheduler.fair_shares import FairShares
from ramet.runtime.scheduler.policy import Order, PolicyContext
from ramet.runtime.scheduler.prompt_order import MIN_SHARED, PromptOrder, shared_len
from ramet.runtime.scheduler.request_state import RequestState

_LineName = tuple[int, str]  # (-priority, run)
_Ranked = tuple[tuple[int, int], RequestState]  # ((-shared tokens, arrival), request)
_MAX_OPEN = 8
_MIN_OVERTAKES = 256


class WaitingQueue:
    """`in_order` lines the requests up: by priority where that is asked for, then by what their runs had lately, and among equals as
    the policy says. `fair` = False takes all for one run.

    `depth_first` shows the policy its equals along the tree of their prompts: those first that share most with what was admitted last, in
    one of the branches that were begun and are not finished; then the oldest. For a batch this is a depth-first walk, which computes
    every shared prefix once. Every so often the oldest is tried first, so that a branch that never runs dry starves nobody.
    """

    def __init__(self, *, fair: bool, by_priority: bool, depth_first: bool) -> None:
        self._fair = fair
        self._by_priority = by_priority
        self._depth_first = depth_first
        self._lines: dict[_LineName, _Line] = {}
        self._num_waiting = 0
        self._open: list[RequestState] = []  # of each branch that was begun, the last that was admitted
        self._admissions_since_oldest = 0

    def __len__(self) -> int:
        return self._num_waiting

    def add(self, state: RequestState) -> None:
        self._lines.setdefault(self._line_of(state), _Line(self._depth_first)).add(state)
        self._num_waiting += 1

    def discard(self, state: RequestState) -> None:
        name = self._line_of(state)
        line = self._lines.get(name)
        if line is not None and state.request_id in line.states:
            line.remove(state)
            self._num_waiting -= 1
            if not line.states:
                del self._lines[name]

    def admit(self, state: RequestState) -> None:
        """As `discard`; what shares a prefix with `state` should come next."""
        line = self._lines[self._line_of(state)]
        is_oldest = state is line.oldest
        self._admissions_since_oldest = 0 if is_oldest else self._admissions_since_oldest + 1
        self.discard(state)
        if line.order is not None:
            self._go_on_from(state, line.order)

    def in_order(self, order: Order, shares: FairShares, context: PolicyContext) -> Iterator[RequestState]:
        """Those to try, in order. The queue may change meanwhile."""
        ranks: dict[tuple[int, int], list[_Line]] = {}
        for (priority, run), line in self._lines.items():
            ranks.setdefault((priority, shares.rank(run)), []).append(line)
        for rank in sorted(ranks):
            equals = ranks[rank]
            first = min((line.oldest for line in equals), key=lambda state: state.arrival)
            if self._depth_first and self._admissions_since_oldest >= max(context.max_overtakes, _MIN_OVERTAKES):
                yield first
            near = heapq.merge(*(line.near(self._open) for line in equals)) if self._open and self._depth_first else ()
            later = heapq.merge(*(line.by_arrival() for line in equals))
            tried = list(order(_once(near, later), context))
            yield from (state for state in tried if state.lease is None)

    def _go_on_from(self, state: RequestState, order: PromptOrder) -> None:
        """`state` stands for its branch from now on; where others are nearer to the one that did so far, the branch forks here."""
        for index, last in enumerate(self._open):
            shared = shared_len(last, state)
            if shared >= MIN_SHARED and shared >= order.nearest(last):
                self._open[index] = state
                return
        self._open = [*self._open[-_MAX_OPEN + 1 :], state]

    def _line_of(self, state: RequestState) -> _LineName:
        return (-state.request.priority if self._by_priority else 0, state.request.group if self._fair else "")


class _Line:
    """Requests that count as one run's, by arrival, and if need be along the tree."""

    def __init__(self, depth_first: bool) -> None:
        self.states: dict[str, RequestState] = {}
        self.order = PromptOrder() if depth_first else None

    @property
    def oldest(self) -> RequestState:
        return next(iter(self.states.values()))

    def add(self, state: RequestState) -> None:
        self.states[state.request_id] = state
        if self.order is not None:
            self.order.add(state)

    def remove(self, state: RequestState) -> None:
        del self.states[state.request_id]
        if self.order is not None:
            self.order.remove(state)

    def near(self, to: Iterable[RequestState]) -> Iterator[_Ranked]:
        order = self.order
        assert order is not None
        return heapq.merge(*(_ranked(order, each) for each in to))

    def by_arrival(self) -> Iterator[_Ranked]:
        return (((0, state.arrival), state) for state in self.states.values())


def _ranked(order: PromptOrder, to: RequestState) -> Iterator[_Ranked]:
    return (((-shared, state.arrival), state) for shared, state in order.near(to))


def _once(near: Iterable[_Ranked], later: Iterable[_Ranked]) -> Iterator[RequestState]:
    seen: set[str] = set()
    for _, state in near:
        if state.request_id not in seen:
            seen.add(state.request_id)
            yield state
    for _, state in later:
        if state.request_id not in seen:
            yield state
