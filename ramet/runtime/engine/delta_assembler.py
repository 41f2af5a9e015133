"""Tokens of one request → deltas of text: detokenise, look for stop strings, count, and keep the times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ramet.runtime.request import Delta, Finish, FinishKind, Request, RequestOutput
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
        self._arrival = request.arrival_time
        self._held: list[Delta] = []
        self._held_tokens = 0
        self._latest = Delta(request_id=request_id, prompt_tokens=len(request.prompt_ids))

    def push(self, output: RequestOutput) -> Delta | None:
        """Take one step's news; None when they are held back."""
        text, num_tokens, finish = self._read(output)
        if finish is not None:
            text += self._rest_of_text(finish)
        self._hold(output, text, num_tokens, finish)
        return self._release() if self._due(finish) else None

    def end(self, finish: Finish) -> Delta:
        """The terminal delta when the worker will not send it: what is held, and `finish`."""
        self._held.append(replace(self._blank(), text=self._rest_of_text(finish), finish=finish, e2e_latency=self._elapsed()))
        return self._release()

    def _read(self, output: RequestOutput) -> tuple[str, int, Finish | None]:
        """(new text, tokens that belong to the output, finish). A step that brings several tokens is read one by one, so that those
        behind a stop string can be left out."""
        ids = output.token_ids
        spoken = len(ids) - self._ends_unspoken(output)
        step = 1 if self._one_by_one else max(1, len(ids))
        pieces: list[str] = []
        for start in range(0, len(ids), step):
            found = self._stop.push(self._detokenizer.push(ids[start : min(start + step, spoken)]))
            pieces.append(found.text)
            if found.matched is not None:
                return "".join(pieces), start + step, Finish(FinishKind.STOP, matched=found.matched)
        return "".join(pieces), len(ids), output.finish

    def _ends_unspoken(self, output: RequestOutput) -> bool:
        """A stop token ends the output but is not part of its text."""
        finish = output.finish
        return finish is not None and finish.kind is FinishKind.STOP and isinstance(finish.matched, int) and not self._keeps_stop_token

    def _rest_of_text(self, finish: Finish) -> str:
        if isinstance(finish.matched, str):
            return ""
        return self._stop.push(self._detokenizer.flush()).text + self._stop.flush()

    def _hold(self, output: RequestOutput, text: str, num_tokens: int, finish: Finish | None) -> None:
        latest = self._latest
        completion_tokens = latest.completion_tokens + num_tokens
        elapsed = self._elapsed()
        first = latest.first_token_latency or (elapsed if completion_tokens else 0.0)
        self._latest = Delta(
            request_id=latest.request_id,
            text=text,
            token_ids=output.token_ids[:num_tokens],
            logprobs=output.logprobs[:num_tokens],
            prompt_logprobs=output.prompt_logprobs,
            finish=finish,
            prompt_tokens=output.prompt_tokens or latest.prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=max(output.cached_tokens, latest.cached_tokens),
            forced_tokens=max(output.forced_tokens, latest.forced_tokens),
            num_retractions=max(output.num_retractions, latest.num_retractions),
            queue_time=max(0.0, output.scheduled_time - self._arrival) if output.scheduled_time else latest.queue_time,
            first_token_latency=first,
            e2e_latency=elapsed,
        )
        self._held.append(self._latest)
        self._held_tokens += num_tokens

    def _due(self, finish: Finish | None) -> bool:
        if finish is not None:
            return True
        if self._interval is None:
            return False
        first = self._latest.completion_tokens == self._held_tokens
        return self._held_tokens >= (1 if first else self._interval)

    def _release(self) -> Delta:
        delta = joined(self._held)
        self._held = []
        self._held_tokens = 0
        return delta

    def _blank(self) -> Delta:
        return replace(self._latest, text="", token_ids=(), logprobs=(), prompt_logprobs=())

    def _elapsed(self) -> float:
        return time.monotonic() - self._arrival


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
