"""How much a step may prefill, and whether one more request fits beside those that run."""

from __future__ import annotations

from collections.abc import Collection

from ramet.runtime.scheduler.request_state import RequestState

MAX_RESERVED_NEW_TOKENS = 4096
"""A request with a huge max_new_tokens reserves no more than a share of this."""

_FIRST_RATIO = 0.7
_LAST_RATIO = 0.1
_DECAY_STEPS = 600
_MARGIN_TOKENS = 20


class PrefillBudget:
    """Prompt tokens that one step may still take.

    `chunk` = None never splits a prompt: one longer than the whole budget then runs in a step of its own.
    """

    def __init__(self, max_prefill_tokens: int, chunk: int | None) -> None:
        self._left = max_prefill_tokens if chunk is None else min(max_prefill_tokens, chunk)
        self._splits = chunk is not None
        self._untouched = True

    @property
    def left(self) -> int:
        return max(self._left, 0)

    @property
    def is_spent(self) -> bool:
        return self._left <= 0

    def grant(self, wanted: int, room: int) -> int:
        """How many of the `wanted` tokens may run now, with KV pages for `room` tokens; 0: none."""
        if self._splits:
            return max(0, min(wanted, self._left, room))
        fits = wanted <= room and (wanted <= self._left or self._untouched)
        return wanted if fits else 0

    def spend_forced(self, num_tokens: int) -> None:
        """Tokens that grammars forced and that ride on decode rows: at most `left`. They keep no prompt from a step of its own."""
        self._left -= num_tokens

    def spend(self, num_tokens: int) -> None:
        self._left -= num_tokens
        self._untouched = False


class NewTokenRatio:
    """Which part of max_new_tokens running requests will really use: the pages reserved for them when another is admitted.

    Starts high and falls with every step that goes well; a retraction says that it was too low, and sets it to what the running
    requests have used so far (with a margin), from where it falls again.
    """

    def __init__(self) -> None:
        self.value = _FIRST_RATIO
        self._step = (_FIRST_RATIO - _LAST_RATIO) / _DECAY_STEPS

    def on_step(self) -> None:
        self.value = max(_LAST_RATIO, self.value - self._step)

    def on_retraction(self, running: Collection[RequestState]) -> None:
        used = sum(state.num_outputs + _MARGIN_TOKENS for state in running)
        allowed = sum(state.max_outputs for state in running)
        self.value = max(self.value, min(1.0, used / max(allowed, 1)))

    def reset(self) -> None:
        self.value = _FIRST_RATIO

    def reserve(self, state: RequestState, num_planned: int, page_size: int) -> int:
        """Pages to keep for what `state` will compute beyond `num_planned`."""
        left = min(state.most_outputs - state.num_outputs, MAX_RESERVED_NEW_TOKENS)
        tokens = max(state.num_known - num_planned, 0) + int(max(left, 0) * self.value)
        return -(-tokens // page_size)
