"""The requests that wait, by program run, so that no run hides another one from the policy."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice

from ramet.runtime.scheduler.fair_shares import FairShares
from ramet.runtime.scheduler.policy import WINDOW, Order, PolicyContext
from ramet.runtime.scheduler.prompt_order import MIN_SHARED, PromptOrder, shared_len
from ramet.runtime.scheduler.request_state import RequestState

_Line = dict[str, RequestState]  # requests that count as one run's, by arrival
_LineName = tuple[int, str]  # (-priority, run)
_Rank = tuple[int, int]  # (-priority, rank of the run)
_MAX_OPEN = 4
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
        self._lines: dict[_LineName, _Line] = {}
        self._num_waiting = 0
        self._tree = PromptOrder() if depth_first else None
        self._open: list[RequestState] = []  # of each branch that was begun, the last that was admitted
        self._admissions_since_oldest = 0

    def __len__(self) -> int:
        return self._num_waiting

    def add(self, state: RequestState) -> None:
        self._lines.setdefault(self._line_of(state), {})[state.request_id] = state
        self._num_waiting += 1
        if self._tree is not None:
            self._tree.add(state)

    def discard(self, state: RequestState) -> None:
        name = self._line_of(state)
        line = self._lines.get(name, {})
        if line.pop(state.request_id, None) is None:
            return
        self._num_waiting -= 1
        if not line:
            del self._lines[name]
        if self._tree is not None:
            self._tree.remove(state)

    def admit(self, state: RequestState) -> None:
        """As `discard`; what shares a prefix with `state` should come next."""
        is_oldest = state is _oldest(self._lines[self._line_of(state)])
        self._admissions_since_oldest = 0 if is_oldest else self._admissions_since_oldest + 1
        self.discard(state)
        if self._tree is not None:
            self._go_on_from(state, self._tree)

    def in_order(self, order: Order, shares: FairShares, context: PolicyContext) -> Iterator[RequestState]:
        """Those to try, in order. The queue may change meanwhile."""
        ranks: dict[_Rank, list[_Line]] = {}
        rank_of: dict[_LineName, _Rank] = {}
        for (priority, run), line in self._lines.items():
            rank_of[priority, run] = rank = (priority, shares.rank(run))
            ranks.setdefault(rank, []).append(line)
        near: dict[_Rank, dict[str, RequestState]] = {rank: {} for rank in ranks}
        for state in self._near():
            near[rank_of[self._line_of(state)]][state.request_id] = state
        for rank in sorted(ranks):
            first = min((_oldest(line) for line in ranks[rank]), key=lambda state: state.arrival)
            if self._tree is not None and self._admissions_since_oldest >= max(context.max_overtakes, _MIN_OVERTAKES):
                yield first
            tried = list(order(_shown(near[rank], ranks[rank]), context))
            yield from (state for state in tried if state.lease is None)

    def _near(self) -> Iterable[RequestState]:
        """What shares most with the open branches, each once, as many as a policy looks at."""
        tree = self._tree
        if tree is None:
            return ()
        merged = heapq.merge(*(tree.near(each) for each in self._open), key=lambda pair: -pair[0])
        found = {state.request_id: state for _, state in islice(merged, WINDOW)}
        return found.values()

    def _go_on_from(self, state: RequestState, tree: PromptOrder) -> None:
        """`state` stands for its branch from now on; where others are nearer to the one that did so far, the branch forks here."""
        for index, last in enumerate(self._open):
            shared = shared_len(last, state)
            if shared >= MIN_SHARED and shared >= tree.nearest(last):
                self._open[index] = state
                return
        self._open = [*self._open[-_MAX_OPEN + 1 :], state]

    def _line_of(self, state: RequestState) -> _LineName:
        return (-state.request.priority if self._by_priority else 0, state.request.group if self._fair else "")


def _oldest(line: _Line) -> RequestState:
    return next(iter(line.values()))


def _shown(near: dict[str, RequestState], lines: list[_Line]) -> Iterator[RequestState]:
    """The near ones, nearest first, then the others by arrival."""
    yield from near.values()
    later = lines[0].values() if len(lines) == 1 else heapq.merge(*(line.values() for line in lines), key=lambda state: state.arrival)
    yield from (state for state in later if state.request_id not in near)
