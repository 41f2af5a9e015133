"""Guesses by looking back: what followed the last few tokens when they occurred before, in the prompt or in the output."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.runtime.scheduler.request_state import RequestState

_SIZES = (3, 2)
"""Tokens that must agree; the longer match is tried first."""


class PromptLookups:
    """Implements `Guesser`: every request looks back on itself."""

    has_failed = False

    def __init__(self) -> None:
        self._lookups: dict[str, PromptLookup] = {}

    def guess(self, wanted: Sequence[tuple[RequestState, int]]) -> list[list[int]]:
        found = []
        for state, most in wanted:
            lookup = self._lookups.setdefault(state.request_id, PromptLookup())
            found.append(lookup.guess(state.request.prompt_ids, state.output_ids, most))
        return found

    def forget(self, request_id: str) -> None:
        self._lookups.pop(request_id, None)

    def flush(self) -> None:
        self._lookups.clear()

    def close(self) -> None:
        self._lookups.clear()


class PromptLookup:
    """What one request has said so far, by its n-grams."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._follow: dict[tuple[int, ...], int] = {}  # n-gram → where its latest occurrence but the last went on
        self._num_indexed = 0

    def guess(self, prompt_ids: Sequence[int], output_ids: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may come next. Always called with the sequence of before, or a longer one."""
        self._extend(prompt_ids, output_ids)
        for size in _SIZES:
            at = self._follow.get(tuple(self._tokens[-size:]))
            if at is not None:
                found = self._tokens[at : at + most]
                while len(found) < most:  # it has come to the end: a repetition goes on with what was just guessed
                    found.append(found[len(found) - len(self._tokens) + at])
                return found
        return []

    def _extend(self, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        if not self._tokens:
            self._tokens += prompt_ids
        self._tokens += output_ids[len(self._tokens) - len(prompt_ids) :]
        for end in range(self._num_indexed, len(self._tokens)):  # n-grams before `end`; not yet the one at the very end
            for size in _SIZES:
                if end >= size:
                    self._follow[tuple(self._tokens[end - size : end])] = end
        self._num_indexed = len(self._tokens)
