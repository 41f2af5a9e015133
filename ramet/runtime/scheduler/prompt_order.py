"""Waiting prompts in the order of their radix tree, without the tree: sorted by tokens, what shares a prefix stands together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from ramet.runtime.scheduler.request_state import RequestState

MIN_SHARED = 16
"""A shared beginning of fewer tokens (a BOS, the border of a turn) makes no branch."""
_Place = tuple[str, bytes, int]  # namespace, tokens, arrival


class PromptOrder:
    """O(log n) comparisons to add and to remove. `_shared[i]` is the length of the prefix that place i shares with place i - 1."""

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._states: list[RequestState] = []
        self._shared: list[int] = []

    def add(self, state: RequestState) -> None:
        place = _place(state)
        at = bisect_left(self._places, place)
        self._places.insert(at, place)
        self._states.insert(at, state)
        self._shared.insert(at, shared_len(self._states[at - 1], state) if at else 0)
        if at + 1 < len(self._states):
            self._shared[at + 1] = shared_len(state, self._states[at + 1])

    def remove(self, state: RequestState) -> None:
        at = bisect_left(self._places, _place(state))
        if at + 1 < len(self._shared):
            self._shared[at + 1] = min(self._shared[at], self._shared[at + 1])
        del self._places[at], self._states[at], self._shared[at]

    def nearest(self, to: RequestState) -> int:
        """The longest prefix that anybody here shares with `to`."""
        return next((shared for shared, _ in self.near(to)), 0)

    def near(self, to: RequestState) -> Iterator[tuple[int, RequestState]]:
        """Outwards from the place of `to`: those that share at least `MIN_SHARED` tokens with it, the most first."""
        right = bisect_left(self._places, _place(to))
        left = right - 1
        before = shared_len(self._states[left], to) if left >= 0 else 0
        behind = shared_len(self._states[right], to) if right < len(self._states) else 0
        while max(before, behind) >= MIN_SHARED:
            if behind >= before:
                yield behind, self._states[right]
                right += 1
                behind = min(behind, self._shared[right]) if right < len(self._states) else 0
            else:
                yield before, self._states[left]
                before = min(before, self._shared[left])
                left -= 1


def shared_len(one: RequestState, other: RequestState) -> int:
    """Tokens of the prefix that two prompts share; those of different namespaces share nothing."""
    if one.request.cache_namespace != other.request.cache_namespace:
        return 0
    length = min(len(one.tokens), len(other.tokens))
    differs = one.tokens[:length] != other.tokens[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length


def _place(state: RequestState) -> _Place:
    return (state.request.cache_namespace, state.tokens.tobytes(), state.arrival)
