"""Guesses by an EAGLE-3 head, which runs beside the model in the executor (`executor/eagle_runner.py`), in the model's own slots: all of a
request's in one go, or one after the other where a grammar has a say in each."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.log import get_logger
from ramet.runtime.engine.guess_rounds import Guessing, GuessRounds, row_start
from ramet.runtime.executor.executor import PendingResult, Steps
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, PlanRow
from ramet.runtime.scheduler.request_state import RequestState

_LOG = get_logger(__name__)


class EagleGuesser:
    """Implements `scheduler.guessing.Guesser`. A head that fails is given up."""

    def __init__(self, steps: Steps, vocab_size: int) -> None:
        self._steps = steps
        self._rounds: GuessRounds[Guessing] = GuessRounds(steps, vocab_size, vocab_size, _next_row)
        self._known: set[str] = set()  # requests whose parameters the head has
        self.has_failed = False

    def guess(self, wanted: Sequence[tuple[RequestState, int]]) -> list[list[int]]:
        """Nothing for those of whom the model has not computed all but the last known token (a grammar forced some): it is the feature of
        the last but one that the head goes on from."""
        rounds = [Guessing(state, most) for state, most in wanted]
        ready = [one for one in rounds if one.state.num_planned == one.state.num_known - 1]
        try:
            if ready and not self.has_failed:
                self._run([one for one in ready if one.state.matcher is None], [one for one in ready if one.state.matcher is not None])
        except Exception as error:
            self.has_failed = True
            _LOG.error("The EAGLE head failed and is given up; generation goes on without guesses", exc_info=error)
            return [[] for _ in rounds]
        return [one.guessed for one in rounds]

    def forget(self, request_id: str) -> None:
        self._known.discard(request_id)

    def flush(self) -> None:
        """Its keys lie in the model's pages."""

    def close(self) -> None:
        """It ends with the executor."""

    def _run(self, free: Sequence[Guessing], constrained: Sequence[Guessing]) -> None:
        chains = self._launch([self._first_row(one, one.most) for one in free]) if free else None
        self._rounds.run([(self._first_row(one, 1), one) for one in constrained])
        if chains is not None:
            for one, row in zip(free, chains.result().rows, strict=True):
                one.guessed += row.token_ids

    def _launch(self, rows: Sequence[PlanRow]) -> PendingResult:
        plan = BatchPlan(0, tuple(rows))
        self._steps.launch(plan)
        return self._steps.sample(plan, None)

    def _first_row(self, one: Guessing, num_guesses: int) -> PlanRow:
        """Behind the last known token, which the model has not computed."""
        state = one.state
        reset = None if state.request_id in self._known else row_start(state)
        self._known.add(state.request_id)
        one.num_asked = 1
        assert state.lease is not None, "only a running request is guessed"
        row = _row(one, state.known_tokens(state.num_known - 1, state.num_known)[0])
        guesses = (PENDING_TOKEN,) * (num_guesses - 1)
        return row._replace(token_ids=row.token_ids + guesses, reset=reset, new_pages=tuple(state.lease.pages[row.first_page :]))


def _next_row(one: Guessing) -> PlanRow:
    return _row(one, PENDING_TOKEN)


def _row(one: Guessing, token: int) -> PlanRow:
    state = one.state
    start, mask_row = state.num_known + one.num_asked - 2, None if state.matcher is None else 0
    return PlanRow(state.request_id, state.slot, (token,), start, state.num_pages_sent, (), True, None, None, mask_row)
