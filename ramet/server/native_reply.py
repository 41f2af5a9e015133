"""Deltas in the native reply format (native API §2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ramet.runtime.engine.generation_engine import Tokenizer
from ramet.runtime.request import Delta, Finish, FinishKind, LogprobParams, TokenLogprob
from ramet.server.fanout import Transcript


@dataclass(frozen=True, slots=True)
class NativeFormat:
    """How one request wants its replies: `with_text` puts token texts into logprob entries."""

    tokenizer: Tokenizer
    with_text: bool

    def reply(self, transcript: Transcript, wanted: LogprobParams | None) -> dict[str, Any]:
        """Everything so far."""
        meta = meta_info(transcript.last)
        if wanted is not None:
            meta |= self._logprob_fields(transcript.prompt_logprobs, transcript.logprobs, wanted)
        return {"text": transcript.text, "output_ids": list(transcript.token_ids), "meta_info": meta}

    def delta(self, delta: Delta, wanted: LogprobParams | None) -> dict[str, Any]:
        """Only what is new."""
        meta = meta_info(delta)
        if wanted is not None:
            meta |= self._logprob_fields(delta.prompt_logprobs, delta.logprobs, wanted)
        return {"text": delta.text, "output_ids": list(delta.token_ids), "meta_info": meta}

    def _logprob_fields(self, prompt: Sequence[TokenLogprob], output: Sequence[TokenLogprob], wanted: LogprobParams) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "input_token_logprobs": [self._entry(e.logprob, e.token_id) for e in prompt],
            "output_token_logprobs": [self._entry(e.logprob, e.token_id) for e in output],
        }
        if wanted.top:
            fields["input_top_logprobs"] = [self._entries(e.top) for e in prompt]
            fields["output_top_logprobs"] = [self._entries(e.top) for e in output]
        if wanted.token_ids:
            fields["input_token_ids_logprobs"] = [self._entries(e.chosen) for e in prompt]
            fields["output_token_ids_logprobs"] = [self._entries(e.chosen) for e in output]
        return fields

    def _entries(self, pairs: Iterable[tuple[int, float]]) -> list[list[Any]] | None:
        """None where there is no distribution: the first prompt token."""
        return [self._entry(logprob, token_id) for token_id, logprob in pairs] or None

    def _entry(self, logprob: float | None, token_id: int) -> list[Any]:
        return [logprob, token_id, self.tokenizer.decode([token_id], skip_special_tokens=False) if self.with_text else None]


def meta_info(delta: Delta) -> dict[str, Any]:
    return {
        "id": delta.request_id,
        "finish_reason": None if delta.finish is None else finish_reason(delta.finish, delta.completion_tokens),
        "prompt_tokens": delta.prompt_tokens,
        "completion_tokens": delta.completion_tokens,
        "cached_tokens": delta.cached_tokens,
        "forced_tokens": delta.forced_tokens,
        "num_retractions": delta.num_retractions,
        "queue_time": delta.queue_time,
        "first_token_latency": delta.first_token_latency,
        "e2e_latency": delta.e2e_latency,
    }


def finish_reason(finish: Finish, completion_tokens: int) -> dict[str, Any]:
    if finish.kind is FinishKind.STOP:
        return {"type": "stop", "matched": finish.matched}
    if finish.kind is FinishKind.LENGTH:
        return {"type": "length", "length": completion_tokens}
    return {"type": "abort", "message": finish.message, "status_code": finish.status, "err_type": finish.code}
