"""Logprobs of both OpenAI shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ramet.runtime.engine.generation_engine import Tokenizer
from ramet.runtime.request import TokenLogprob


def chat_logprobs(tokenizer: Tokenizer, logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    content = []
    for entry in logprobs:
        top = [_described(tokenizer, token_id, logprob) for token_id, logprob in entry.top]
        content.append(_described(tokenizer, entry.token_id, entry.logprob or 0.0) | {"top_logprobs": top})
    return {"content": content}


def completion_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """`offset`: characters of the choice's text before the first of these tokens."""
    tokens = [_text(tokenizer, entry.token_id) for entry in logprobs]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [entry.logprob for entry in logprobs],
        "top_logprobs": [{_text(tokenizer, i): logprob for i, logprob in entry.top} if entry.top else None for entry in logprobs],
        "text_offset": offsets,
    }


def _described(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    text = _text(tokenizer, token_id)
    raw = tokenizer.token_bytes()
    data = raw[token_id] if token_id < len(raw) else b""
    return {"token": text, "logprob": logprob, "bytes": list(data or text.encode())}


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], skip_special_tokens=False)
