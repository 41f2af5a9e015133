"""Token accounting as OpenAI reports it: a prompt counts once, however many choices it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramet.server.fanout import Transcript


def usage_of(transcripts: Sequence[Transcript], n: int) -> dict[str, Any]:
    """`transcripts` hold n choices of each prompt in turn. Cached tokens are those of the first choice: the others reuse its prompt."""
    first_choices = transcripts[::n]
    prompt_tokens = sum(t.last.prompt_tokens for t in first_choices)
    completion_tokens = sum(t.last.completion_tokens for t in transcripts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(t.last.cached_tokens for t in first_choices)},
    }
