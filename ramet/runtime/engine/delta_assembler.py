"""Tokens of one request → deltas of text: detokenise, look for stop strings, count, and keep the times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ramet.runtime.request import Delta, Finish, FinishKind, Request, RequestOutput, TokenLogprob
from ramet.runtime.text.detokenizer import Detokenizer
from ramet.runtime.text.stop import StopFilter


class DeltaAssembler:
    """Holds news back until `interval` tokens are together (None: until the end); the first token is never held back by an interval.

    When a stop string is found in the text, the delta that ends the stream says so before the worker knows; the caller aborts there.
    """

    def __init__(self, request: Request, request_id: str, token_bytes: Sequence[bytes], interval: int | None) -> None:
        sampling = request.sampling
        self._detokenizer = Detokenizer(token_bytes)
        self._stop = StopFilter(sampling.stop, sampling.stop_regex, trim=not sampling.no_stop_trim)
        self._one_by_one = bool(sampling.stop or sampling.stop_regex)
        self._keeps_stop_token = sampling.no_stop_trim
        self._interval = interval
        self._request_id = request_id
        self._arrival = request.arrival_time
        self._counters = RequestOutput(request.request_id, prompt_tokens=len(request.prompt_ids))  # the last output that had them
        self._num_tokens = 0
        self._first_token_latency = 0.0
        self._texts: list[str] = []  # held back, as are the next three
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] = []

    def push(self, output: RequestOutput) -> Delta | None:
        """Take one step's news; None when they are held back."""
        num_tokens, finish = self._read(output)
        self._token_ids += output.token_ids[:num_tokens]
        self._logprobs += output.logprobs[:num_tokens]
        self._prompt_logprobs += output.prompt_logprobs
        if output.scheduled_time:
            self._counters = output
        if num_tokens and not self._num_tokens:
            self._first_token_latency = time.monotonic() - self._arrival
        self._num_tokens += num_tokens
        if finish is not None:
            return self.end(finish)
        return self._release(None) if self._is_due() else None

    def end(self, finish: Finish) -> Delta:
        """The terminal delta: all that is held back, and `finish`. Called from outside when the worker will not send it."""
        if not isinstance(finish.matched, str):  # nothing of the text follows a stop string
            self._texts += (self._stop.push(self._detokenizer.flush()).text, self._stop.flush())
        return self._release(finish)

    def _read(self, output: RequestOutput) -> tuple[int, Finish | None]:
        """Note the text; returns (how many tokens belong to the output, finish). Where there are stop strings, a step that brings several
        tokens is read one by one, so that those behind a stop string can be left out."""
        ids = output.token_ids
        spoken = len(ids) - self._ends_unspoken(output.finish)
        step = 1 if self._one_by_one else max(1, len(ids))
        for start in range(0, len(ids), step):
            found = self._stop.push(self._detokenizer.push(ids[start : min(start + step, spoken)]))
            self._texts.append(found.text)
            if found.matched is not None:
                return start + step, Finish(FinishKind.STOP, matched=found.matched)
        return len(ids), output.finish

    def _ends_unspoken(self, finish: Finish | None) -> bool:
        """A stop token ends the output but is not part of its text."""
        return finish is not None and finish.kind is FinishKind.STOP and isinstance(finish.matched, int) and not self._keeps_stop_token

    def _is_due(self) -> bool:
        if self._interval is None or not (self._token_ids or self._prompt_logprobs):
            return False
        is_first = self._num_tokens == len(self._token_ids)
        return is_first or len(self._token_ids) >= self._interval

    def _release(self, finish: Finish | None) -> Delta:
        counters = self._counters
        delta = Delta(
            request_id=self._request_id,
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            finish=finish,
            prompt_tokens=counters.prompt_tokens,
            completion_tokens=self._num_tokens,
            cached_tokens=counters.cached_tokens,
            forced_tokens=min(counters.forced_tokens, self._num_tokens),  # a stop string may cut a forced run
            num_retractions=counters.num_retractions,
            num_verified=counters.num_verified,
            guessed_tokens=counters.guessed_tokens,
            right_guesses=counters.right_guesses,
            queue_time=max(0.0, counters.scheduled_time - self._arrival) if counters.scheduled_time else 0.0,
            first_token_latency=self._first_token_latency,
            e2e_latency=time.monotonic() - self._arrival,
        )
        self._texts, self._token_ids, self._logprobs, self._prompt_logprobs = [], [], [], []
        return delta


def joined(deltas: Sequence[Delta]) -> Delta:
    """Several deltas of one request as one."""
    if len(deltas) == 1:
        return deltas[0]
    return replace(
        deltas[-1],
        text="".join([delta.text for delta in deltas]),
        token_ids=tuple([token for delta in deltas for token in delta.token_ids]),
        logprobs=tuple([entry for delta in deltas for entry in delta.logprobs]),
        prompt_logprobs=tuple([entry for delta in deltas for entry in delta.prompt_logprobs]),
    )
