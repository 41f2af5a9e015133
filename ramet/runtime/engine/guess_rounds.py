"""A chain of guesses for several requests at once: one step for the first guess of each, then one for each further one.

Whatever guesses is driven like a model, by plans; grammar masks are filled as if the guesses before were right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from ramet.grammar.matcher import SerialMasks
from ramet.runtime.executor.executor import PendingResult, Steps
from ramet.runtime.plan import BatchPlan, PlanRow, RowStart, TokenMasks
from ramet.runtime.scheduler.constraints import fill_masks
from ramet.runtime.scheduler.request_state import RequestState


@dataclass(slots=True)
class Guessing:
    """A request in this round: `most` guesses are wanted of it, `num_asked` are on their way or here, `walked` of them in its matcher."""

    state: RequestState
    most: int
    num_asked: int = 0
    guessed: list[int] = field(default_factory=list)
    walked: int = 0
    has_ended: bool = False

    def take(self, token: int) -> None:
        self.guessed.append(token)
        matcher = self.state.matcher
        if matcher is None:
            return
        is_legal = token not in self.state.request.stop_token_ids and matcher.accept((token,)) == 1
        self.walked += is_legal
        self.has_ended = not is_legal or matcher.stopped


G = TypeVar("G", bound=Guessing)


class GuessRounds(Generic[G]):
    """`next_row`: the row that guesses on behind the last guess of a request."""

    def __init__(self, steps: Steps, vocab_size: int, logits_size: int, next_row: Callable[[G], PlanRow]) -> None:
        """`vocab_size`: of the model that is guessed for; `logits_size`: of what guesses."""
        self._steps, self._vocab_size, self._logits_size, self._next_row = steps, vocab_size, logits_size, next_row
        self._num_steps = 0

    def run(self, rows: list[tuple[PlanRow, G]]) -> None:
        """`rows`: those of the first step; one that does not sample ends its request's round."""
        taking_part = [one for _, one in rows]
        steps: list[tuple[list[tuple[PlanRow, G]], PendingResult]] = []
        try:
            while rows:
                steps.append((rows, self._step(rows)))
                if any(one.state.matcher is not None for _, one in rows):
                    _take(steps)  # the next masks depend on them
                going_on = [one for row, one in rows if row.samples and one.num_asked < one.most and not one.has_ended]
                for one in going_on:
                    one.num_asked += 1
                rows = [(self._next_row(one), one) for one in going_on]
            _take(steps)
        finally:
            for one in taking_part:
                if one.walked and one.state.matcher is not None:
                    one.state.matcher.rollback(one.walked)

    def _step(self, rows: Sequence[tuple[PlanRow, G]]) -> PendingResult:
        constrained = [one for row, one in rows if row.mask_row is not None]
        plan = BatchPlan(self._num_steps, tuple(_masked(rows)), len(constrained))
        self._num_steps += 1
        self._steps.launch(plan)
        return self._steps.sample(plan, self._masks(constrained) if constrained else None)

    def _masks(self, constrained: Sequence[G]) -> TokenMasks:
        """As wide as the logits: padding of either model is forbidden."""
        bits = fill_masks([one.state.matcher for one in constrained], self._vocab_size, SerialMasks()).bits
        words = -(-self._logits_size // 32)
        return TokenMasks(np.pad(bits[:, :words], ((0, 0), (0, max(words - bits.shape[1], 0)))))


def row_start(state: RequestState) -> RowStart:
    """A request samples where it is guessed as it does in the model, but for log-probabilities."""
    request = state.request
    return RowStart(request.sampling, request.seed, None, request.prompt_ids, tuple(state.output_ids), request.stop_token_ids)


def _masked(rows: Sequence[tuple[PlanRow, G]]) -> list[PlanRow]:
    """Rows with their places among the masks."""
    found, count = [], 0
    for row, _ in rows:
        found.append(row if row.mask_row is None else row._replace(mask_row=count))
        count += row.mask_row is not None
    return found


def _take(steps: list[tuple[list[tuple[PlanRow, G]], PendingResult]]) -> None:
    """Read the results of the steps in flight."""
    for rows, pending in steps:
        for (row, one), result in zip(rows, pending.result().rows, strict=True):
            if row.samples:
                one.take(result.token_ids[0])
    steps.clear()
