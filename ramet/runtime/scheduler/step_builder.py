"""Rows of one step: turns "this request, so many tokens" into a `PlanRow`, and notes what is now on its way."""

from __future__ import annotations

from collections.abc import Sequence

from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, PageMove, PlanRow, RowStart
from ramet.runtime.scheduler.request_state import Phase, RequestState

_PENDING = (PENDING_TOKEN,)


class StepBuilder:
    """The pages of every token must be in the request's lease before its row is added."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.rows: list[PlanRow] = []
        self.states: list[tuple[RequestState, int]] = []  # parallel to rows: the request and its epoch
        self.num_masks = 0
        self.began_at = self.planned_at = 0.0
        self.num_requests = 0  # that ran when it was planned
        self.guesses = False  # whether any were asked for
        self.num_decodes = 0
        self.num_prefill_tokens = 0
        self.num_new_requests = 0
        self.num_cached_tokens = 0

    def decode(self, state: RequestState, num_tokens: int) -> None:
        """Compute the last sampled token, or the next `num_tokens` of those that are known since the grammar forced some."""
        self.num_decodes += 1
        num_known, start = state.num_known, state.num_planned
        if state.promised > num_known:
            state.num_planned = start + 1
            self._add(state, _PENDING, start, samples=True)
        elif start + 1 == num_known and state.logprobs_next is None:
            state.num_planned = num_known
            self._add(state, (state.output_ids[-1],), start, samples=True)
        else:
            self._compute(state, num_tokens)

    def guess(self, state: RequestState, guessed: Sequence[int]) -> None:
        """Rows behind the decode row just added, one for each of the tokens that may follow; each samples what follows it in turn."""
        state.guessed, state.guessed_from = tuple(guessed), state.num_planned
        for start, token in enumerate(guessed, state.num_planned):
            self._add(state, (token,), start, samples=True)

    def prefill(self, state: RequestState, num_tokens: int) -> None:
        """Compute the next `num_tokens` of the prompt (and of the output so far: after a retraction, or forced)."""
        self.num_prefill_tokens += num_tokens
        if state.num_planned + num_tokens == state.prefill_end:
            state.move(Phase.DECODING)
        self._compute(state, num_tokens)

    def plan(self, moves: tuple[PageMove, ...] = ()) -> BatchPlan:
        return BatchPlan(self.step, tuple(self.rows), self.num_masks, moves)

    def _compute(self, state: RequestState, num_tokens: int) -> None:
        """A row of known tokens; it samples if it reaches the last of them."""
        start, end = state.num_planned, state.num_planned + num_tokens
        owed = state.logprobs_next
        logprobs_from = None
        if owed is not None and end > owed:
            logprobs_from = owed
            start = min(start, max(owed - 1, 0))  # the logits before a row's first token: that one is computed again
            state.logprobs_next = end if end < state.num_known else None
        state.num_planned = end
        samples = end == state.num_known and state.may_sample_again
        self._add(state, state.known_tokens(start, end), start, samples=samples, logprobs_from=logprobs_from)

    def _add(self, state: RequestState, token_ids: tuple[int, ...], start: int, *, samples: bool, logprobs_from: int | None = None) -> None:
        lease = state.lease
        assert lease is not None, "only a running request has rows"
        first_page, num_pages = state.num_pages_sent, len(lease.pages)
        new_pages: tuple[int, ...] = ()
        if first_page < num_pages:
            new_pages, state.num_pages_sent = tuple(lease.pages[first_page:]), num_pages
        reset = None
        if state.is_fresh:
            reset, state.is_fresh = _row_start(state), False
        mask_row = None
        if samples:
            state.promised = state.num_planned + 1
            if state.matcher is not None:
                mask_row, self.num_masks = self.num_masks, self.num_masks + 1
        state.rows_in_flight += 1
        self.rows.append(
            PlanRow(state.request.request_id, state.slot, token_ids, start, first_page, new_pages, samples, reset, logprobs_from, mask_row)
        )
        self.states.append((state, state.epoch))


def _row_start(state: RequestState) -> RowStart:
    request = state.request
    return RowStart(
        sampling=request.sampling,
        seed=request.seed,
        logprobs=request.logprobs,
        prompt_ids=request.prompt_ids,
        output_ids=tuple(state.output_ids),
        stop_token_ids=request.stop_token_ids,
    )
