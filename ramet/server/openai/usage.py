"""Token accounting as OpenAI reports it: a prompt counts once, however many choices it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramet.runtime.request import Delta


def usage_of(lasts: Sequence[Delta], n: int) -> dict[str, Any]:
    """`lasts`: the last delta of n choices of each prompt in turn. Cached tokens are the first choice's: the others reuse its prompt."""
    first_choices = lasts[::n]
    prompt_tokens = sum(last.prompt_tokens for last in first_choices)
    completion_tokens = sum(last.completion_tokens for last in lasts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(last.cached_tokens for last in first_choices)},
    }
