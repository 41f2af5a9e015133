"""Where guesses of the next tokens come from, and how they are verified.

The guesses of a request ride on its decode row as rows of their own, one token each, every one of which samples: where the sampled token
is the one that the next row guessed, that row's sample counts too. So output is what it would be without guesses, whatever they are, and
at every temperature: a row's sample depends on its seed and position, not on what was guessed. A guesser that samples by the same seed and
position is right wherever its distribution is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ramet.runtime.plan import PlanRow
from ramet.runtime.request import SamplingParams
from ramet.runtime.scheduler.request_state import RequestState


class Guesser(Protocol):
    """What comes of it changes how fast output comes, never what it is."""

    has_failed: bool
    """It has been given up: nothing will ever be guessed."""

    def guess(self, wanted: Sequence[tuple[RequestState, int]]) -> list[list[int]]:
        """For every request up to so many tokens that may follow all that is known of it, in order."""

    def forget(self, request_id: str) -> None:
        """The request has left its slot, for good or not. One that was never asked for is no error."""

    def flush(self) -> None:
        """Nobody runs, and nothing may be reused."""

    def close(self) -> None:
        """Free what it holds. Idempotent."""


def may_guess(state: RequestState) -> bool:
    """Penalties count the tokens before a position, and logprobs of forced tokens come in their order: with these, tokens are taken one by
    one."""
    request = state.request
    sampling: SamplingParams = request.sampling
    penalised = sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1.0
    return not penalised and (request.logprobs is None or request.grammar is None)


def verifiable(state: RequestState, guessed: Sequence[int]) -> list[int]:
    """The guesses that are worth a row: none that would end the request, none that its grammar forbids."""
    found = list(takewhile(lambda token: token not in state.request.stop_token_ids, guessed))
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
