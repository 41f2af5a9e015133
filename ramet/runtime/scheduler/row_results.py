"""What a row brought: tokens into the request's state, and news for whoever waits for the request."""

from __future__ import annotations

from ramet.errors import InternalError
from ramet.runtime.plan import PlanRow, RowResult
from ramet.runtime.request import Finish, RequestOutput, TokenLogprob
from ramet.runtime.scheduler import finish_rules
from ramet.runtime.scheduler.request_state import RequestState


def take_tokens(state: RequestState, row: PlanRow, result: RowResult) -> Finish | None:
    """Append what was sampled, up to the token that ends the request; returns the finish that it brings."""
    if not row.samples:
        is_whole = state.max_outputs == 0 and row.end == state.prefill_end
        return finish_rules.LENGTH if is_whole else None
    token_ids = result.token_ids
    if not token_ids:
        raise InternalError(f"the executor sampled nothing for request {state.request_id} in a step that was to sample")
    num_known = state.num_known - row.end
    if num_known:  # the row was planned before the grammar was seen to force these
        if token_ids[:num_known] != state.known_tokens(row.end, row.end + num_known)[: len(token_ids)]:
            return finish_rules.failed(InternalError(f"token {token_ids[0]} was sampled where the grammar forces another"))
        token_ids = token_ids[num_known:]
    for token in token_ids:
        finish = finish_rules.accept_token(state, token)
        if finish is not None:
            return finish
    return None


def news(state: RequestState, row: PlanRow, result: RowResult, finish: Finish | None) -> RequestOutput | None:
    """What has come since the last news; None when that is not yet to be told. A token waits for its logprob, if that is wanted."""
    num_new = len(state.output_ids) - state.num_sent
    if state.request.logprobs is None:
        is_due = num_new >= state.request.news_interval or (num_new and not state.num_sent)
        return output(state, num_new, finish) if is_due or finish else None
    fed = result.prompt_logprobs
    num_prompt = 0 if row.prompt_logprobs_from is None else min(max(state.prompt_len - row.prompt_logprobs_from, 0), len(fed))
    logprobs = fed[num_prompt:] + result.logprobs
    num_new = min(num_new, len(logprobs))
    if not (num_new or num_prompt or finish):
        return None
    return output(state, num_new, finish, logprobs[:num_new], fed[:num_prompt])


def output(
    state: RequestState,
    num_new: int,
    finish: Finish | None,
    logprobs: tuple[TokenLogprob, ...] = (),
    prompt_logprobs: tuple[TokenLogprob, ...] = (),
) -> RequestOutput:
    """Send the next `num_new` output tokens."""
    first, state.num_sent = state.num_sent, state.num_sent + num_new
    return RequestOutput(
        state.request.request_id,
        tuple(state.output_ids[first : state.num_sent]),
        logprobs,
        prompt_logprobs,
        finish,
        state.prompt_len,
        state.cached_tokens,
        state.num_forced,
        state.num_retractions,
        state.scheduled_time,
        state.num_verified,
        state.num_guessed,
        state.num_right,
    )
