"""When a request ends, and how: every `Finish` that the scheduler gives is made here."""

from __future__ import annotations

from ramet.errors import (
    Cancelled,
    ContextTooLong,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    QueueFull,
    RametError,
    Unsupported,
)
from ramet.runtime.plan import Capacity
from ramet.runtime.request import Finish, FinishKind, Request
from ramet.runtime.scheduler.contained_matcher import ContainedMatcher
from ramet.runtime.scheduler.request_state import RequestState

LENGTH = Finish(FinishKind.LENGTH)


def failed(error: RametError) -> Finish:
    return Finish(FinishKind.ERROR, message=error.message, status=error.status, code=error.code or error.kind)


def aborted() -> Finish:
    return Finish(FinishKind.ABORT, message="the request was aborted", status=Cancelled.status, code=Cancelled.code or "")


def out_of_time() -> Finish:
    error = DeadlineExceeded("the request's deadline (timeout_s) passed")
    return Finish(FinishKind.ABORT, message=error.message, status=error.status, code=error.code or "")


def refusal(request: Request, capacity: Capacity, context_len: int) -> Finish | None:
    """Why `request` can never run, even alone; None when it can."""
    prompt_len, new = len(request.prompt_ids), request.sampling.max_new_tokens
    if prompt_len == 0:
        return failed(InvalidRequest("the prompt has no tokens; send at least one", param="input_ids"))
    if prompt_len + min(new, 1) > context_len:
        message = f"{prompt_len} prompt tokens leave no room in a context of {context_len} (--context-length); shorten the prompt"
        return failed(ContextTooLong(message, param="text"))
    longest = kv_len(prompt_len, min(new, context_len - prompt_len))
    if -(-longest // capacity.page_size) > capacity.num_pages:
        return failed(
            ContextTooLong(
                f"{prompt_len} prompt tokens and {new} new ones need {longest} tokens of KV cache, which holds {capacity.num_tokens}; "
                "shorten the prompt, lower max_new_tokens, or start with a larger --max-total-tokens or --mem-fraction-static",
                param="max_new_tokens",
            )
        )
    return None


def kv_len(prompt_len: int, num_outputs: int) -> int:
    """Tokens of KV that a request holds at its end: the last token that it samples is never computed."""
    return prompt_len + max(num_outputs - 1, 0)


def queue_full(limit: int) -> Finish:
    return failed(QueueFull(f"{limit} requests are waiting already (--max-queued-requests); try again later"))


def no_grammars() -> Finish:
    return failed(Unsupported("this server was started without constrained decoding (--grammar-backend none)"))


def accept_token(state: RequestState, token: int) -> Finish | None:
    """Take one sampled token into the request's output; the finish that it brings, if any."""
    output_ids, request, matcher = state.output_ids, state.request, state.matcher
    if matcher is not None and matcher.failure is not None:
        return failed(matcher.failure)  # nobody knows whether this token is one that the grammar allows
    output_ids.append(token)
    if token in request.stop_token_ids and len(output_ids) > request.sampling.min_new_tokens:
        return Finish(FinishKind.STOP, matched=token)
    if matcher is not None:
        finish = _advance(matcher, token, len(output_ids) - 1)
        if finish is not None:
            return finish
    return LENGTH if len(output_ids) >= state.max_outputs else None


def _advance(matcher: ContainedMatcher, token: int, position: int) -> Finish | None:
    if matcher.accept((token,)) == 1:
        return Finish(FinishKind.STOP) if matcher.stopped else None
    if matcher.complete:
        return Finish(FinishKind.STOP, matched=token)  # an end token that ignore_eos took off the stop list
    return failed(matcher.failure or InternalError(f"token {token} at output position {position} breaks the grammar that masked it"))
