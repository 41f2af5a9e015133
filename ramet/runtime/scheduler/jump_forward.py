"""Jump-forward: what a grammar forces is appended without a forward pass of its own; the next row computes it on its way.

A forced position has no part in sampling, and all that depends on the position (seed, penalties, limits, stop tokens) is judged
token by token as ever, so the output is that of masking every token.
"""

from __future__ import annotations

from ramet.runtime.request import Finish, FinishKind
from ramet.runtime.scheduler.finish_rules import accept_token, failed
from ramet.runtime.scheduler.request_state import RequestState

LATE_PLAN_RATE = 0.15
"""From this many jumps per sampled token on, planning late pays: with steps of 6 ms, one row gains from 0.1 on, 32 rows from 0.2."""
_WEIGHT = 0.1


def append_forced(state: RequestState) -> Finish | None:
    """Append what the grammar forces after the output so far; returns the finish that this brings.

    Where logprobs are wanted, a token that would end the request is left to be sampled: those before it need a row anyhow, and it
    comes out of that row together with its own logprob.
    """
    first, wants_logprobs = state.num_known, state.request.logprobs is not None
    finish = _append_runs(state)
    if finish is not None and wants_logprobs and finish.kind is not FinishKind.ERROR:
        _take_back(state, finish)
        finish = None
    first_owed = max(first, state.promised)
    if wants_logprobs and state.logprobs_next is None and first_owed < state.num_known:
        state.logprobs_next = first_owed
    return finish


def _append_runs(state: RequestState) -> Finish | None:
    """Behind a run that was tokenised whole there may be another."""
    assert state.matcher is not None
    while run := state.matcher.forced_tokens():
        for token in run:
            finish = accept_token(state, token)
            if finish is not None:
                return finish
    return None if state.matcher.failure is None else failed(state.matcher.failure)


def _take_back(state: RequestState, finish: Finish) -> None:
    """Undo the `accept_token` that returned `finish`. A stop token was never shown to the matcher."""
    state.output_ids.pop()
    if finish.matched is None and state.matcher is not None:
        state.matcher.rollback(1)


class JumpRate:
    """How often, lately, a sampled token was followed by forced ones.

    The overlapped loop plans the next row before it knows of them: that row then samples the first forced token, a pass that serves for
    nothing else. Where this happens often, planning after the results costs less than it loses.
    """

    def __init__(self) -> None:
        self._value = 0.0
        self._num_rows = self._num_jumps = 0  # of this step

    @property
    def is_high(self) -> bool:
        return self._value >= LATE_PLAN_RATE

    def on_row(self, *, jumped: bool) -> None:
        """A row has brought new tokens; forced ones came `jumped` behind them."""
        self._num_rows += 1
        self._num_jumps += jumped

    def on_step(self) -> None:
        if self._num_rows:
            self._value += _WEIGHT * (self._num_jumps / self._num_rows - self._value)
        self._num_rows = self._num_jumps = 0
