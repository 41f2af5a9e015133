"""A backend without a model: it says what a script says, and otherwise invents text that fits the constraint, the same for the same
prompt. For tests, documentation and trying programs out."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from ramet.errors import InvalidRequest
from ramet.program import scripted_text
from ramet.program.backend import ChatFormat, ChoiceScore, Conversation, GenerateCall, GenerateChunk

Script = Sequence[str] | Callable[[GenerateCall], str | None] | None

CHAT_FORMAT = ChatFormat({role: (f"<|{role}|>\n", "<|end|>\n") for role in ("system", "user", "assistant", "tool")})


class ScriptedBackend:
    """`script`: answers in the order of the calls, or a function of the call (None: invent), or nothing. For a select the call's
    sampling holds `choices`, and an answer that is one of them wins. `latency`: seconds per generation, spread over its chunks.

    What happened is kept: `calls`, `scored` (conversation, choices), `prefilled`, `peak_live` and `aborted`.
    """

    def __init__(self, script: Script = None, *, latency: float = 0.0, chat: ChatFormat = CHAT_FORMAT) -> None:
        self._function = script if callable(script) else None
        self._answers: Iterator[str] | None = None if script is None or callable(script) else iter(script)
        self._latency, self._chat = latency, chat
        self.calls: list[GenerateCall] = []
        self.scored: list[tuple[Conversation, tuple[str, ...]]] = []
        self.prefilled: list[Conversation] = []
        self.live = self.peak_live = self.aborted = self.flushed = 0

    async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        self.calls.append(call)
        self.live += 1
        self.peak_live = max(self.peak_live, self.live)
        finished = False
        try:
            async for chunk in self._speak(call):
                finished = chunk.finished
                yield chunk
        finally:
            self.live -= 1
            self.aborted += not finished

    async def _speak(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        began = time.monotonic()
        tokens, reason = _cut(self._answer(call), call.sampling)
        prompt = call.conversation.render(self._chat)
        for token in tokens:
            await asyncio.sleep(self._latency / len(tokens))
            yield GenerateChunk(token)
        if not tokens:
            await asyncio.sleep(self._latency)
        meta: dict[str, Any] = {
            "id": f"{call.run_id}-{len(self.calls)}",
            "finish_reason": reason,
            "prompt_tokens": len(_tokens(prompt)),
            "completion_tokens": len(tokens),
            "cached_tokens": 0,
            "e2e_latency": time.monotonic() - began,
        }
        if call.logprobs.get("return_logprob"):
            meta["output_token_logprobs"] = [[logprob(prompt, token), _token_id(token), token] for token in tokens]
        yield GenerateChunk("", meta, finished=True)

    async def score(
        self, conversation: Conversation, choices: Sequence[str], *, unconditional: bool = False, run_id: str = ""
    ) -> list[ChoiceScore]:
        self.scored.append((conversation, tuple(choices)))
        await asyncio.sleep(self._latency)
        wanted = self._scripted(GenerateCall(conversation, {"choices": list(choices)}))
        if wanted is not None and wanted not in choices:
            raise InvalidRequest(f"the script answers {wanted!r} to a select among {list(choices)}")
        return [self._score(conversation, choice, choice == wanted, unconditional) for choice in choices]

    def _score(self, conversation: Conversation, choice: str, wanted: bool, unconditional: bool) -> ChoiceScore:
        prompt, tokens = conversation.render(self._chat), _tokens(choice)
        logprobs = tuple(-0.01 if wanted else logprob(prompt, token) for token in tokens)
        alone = tuple(logprob("", token) for token in tokens) if unconditional else ()
        return ChoiceScore(tuple(map(_token_id, tokens)), logprobs, alone)

    async def prefill(self, conversation: Conversation) -> None:
        self.prefilled.append(conversation)

    async def chat_format(self) -> ChatFormat:
        return self._chat

    async def flush_cache(self) -> None:
        self.flushed += 1

    async def server_info(self) -> dict[str, Any]:
        return {"model": "scripted", "calls": len(self.calls)}

    async def close(self) -> None:
        pass

    def _scripted(self, call: GenerateCall) -> str | None:
        if self._answers is None:
            return self._function(call) if self._function is not None else None
        answer = next(self._answers, None)
        if answer is None:
            raise InvalidRequest("the script of ScriptedBackend has no answer left")
        return answer

    def _answer(self, call: GenerateCall) -> str:
        scripted = self._scripted(call)
        return invent(call, self._chat) if scripted is None else scripted


def invent(call: GenerateCall, chat: ChatFormat = CHAT_FORMAT) -> str:
    """The same text for the same prompt, constraint and seed."""
    sampling = call.sampling
    key = f"{call.conversation.render(chat)}\x00{sampling.get('seed')}\x00{sampling.get('regex')}\x00{sampling.get('json_schema')}"
    draw = random.Random(hashlib.sha256(key.encode()).digest())
    if sampling.get("regex") is not None:
        return scripted_text.matching(sampling["regex"], draw)
    if sampling.get("json_schema") is not None:
        return scripted_text.json_text(sampling["json_schema"], draw)
    text = scripted_text.words(draw)
    while len(_tokens(text)) < sampling.get("min_new_tokens", 0):
        text += " " + scripted_text.words(draw)
    return text


def _cut(text: str, sampling: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Apply stop strings (trimmed) and the token limit, as the server does."""
    reason: dict[str, Any] = {"type": "stop", "matched": None}
    stops = sampling.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        head, found, _ = text.partition(stop)
        if found:
            text, reason = head, {"type": "stop", "matched": stop}
    tokens, limit = _tokens(text), int(sampling.get("max_new_tokens", 128))
    return (tokens, reason) if len(tokens) <= limit else (tokens[:limit], {"type": "length", "length": limit})


def _tokens(text: str) -> list[str]:
    return re.findall(r" ?\w+|\s|[^\w\s]", text)


def _token_id(token: str) -> int:
    return int.from_bytes(hashlib.sha256(token.encode()).digest()[:2], "big")


def logprob(prompt: str, token: str) -> float:
    """Between -5 and -1, the same for the same prompt and token."""
    digest = hashlib.sha256(f"{prompt}\x00{token}".encode()).digest()
    return -1.0 - 4.0 * digest[0] / 255
