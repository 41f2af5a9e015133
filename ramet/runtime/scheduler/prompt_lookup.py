"""Guesses by looking back: what followed the last few tokens when they occurred before, in the prompt or in the output.

The guesses of a request ride on its decode row as rows of their own, one token each, every one of which samples: where the sampled token
is the one that the next row guessed, that row's sample counts too. So output is what it would be without guesses, whatever they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from ramet.runtime.plan import PlanRow
from ramet.runtime.request import SamplingParams
from ramet.runtime.scheduler.request_state import RequestState

_SIZES = (3, 2)
"""Tokens that must agree; the longer match is tried first."""


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


def may_guess(state: RequestState) -> bool:
    """Penalties count the tokens before a position, and logprobs come in order: with these, tokens are taken one by one."""
    sampling: SamplingParams = state.request.sampling
    penalised = sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1.0
    return state.request.logprobs is None and not penalised


def guesses(state: RequestState, lookup: PromptLookup, most: int) -> list[int]:
    """Up to `most` tokens to verify behind the next sampling row: none that would end the request, none that its grammar forbids."""
    most = min(most, state.max_outputs - state.num_outputs - 1)
    found = lookup.guess(state.request.prompt_ids, state.output_ids, most) if most > 0 else []
    found = list(takewhile(lambda token: token not in state.request.stop_token_ids, found))
    if state.matcher is None or not found:
        return found
    num_legal = state.matcher.accept(found)
    ends = state.matcher.stopped
    state.matcher.rollback(num_legal)
    return found[: num_legal - ends]


def is_right(state: RequestState, row: PlanRow) -> bool:
    """Whether the tokens guessed for `row` and the rows before it are the ones that came."""
    first = state.guessed_from
    guessed = state.guessed[: row.end - first]
    return row.end <= state.num_known and guessed == state.known_tokens(first, row.end)


def fill_masks_of_guesses(rows: Sequence[tuple[PlanRow, RequestState]], bits: npt.NDArray[np.uint32]) -> None:
    """Masks of the rows that guess, those of a request in order: each as if the guess and those before it were right."""
    walked: dict[str, int] = {}
    for row, state in rows:
        if row.mask_row is not None and row.end > state.num_known and state.matcher is not None:
            walked[state.request_id] = walked.get(state.request_id, 0) + state.matcher.accept(row.token_ids)
            state.matcher.fill_mask(bits[row.mask_row])
    for state in {state.request_id: state for _, state in rows}.values():
        if state.matcher is not None and state.request_id in walked:
            state.matcher.rollback(walked[state.request_id])
