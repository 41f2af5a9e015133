"""Any OpenAI-compatible endpoint as backend. What such an endpoint cannot do is refused by name, never dropped."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from ramet.errors import ConfigError, Unsupported
from ramet.lang.backends.http_client import HttpClient
from ramet.program.backend import ChatFormat, ChoiceScore, Conversation, GenerateCall, GenerateChunk

NAMES = {
    "max_new_tokens": "max_tokens",
    **{name: name for name in ("temperature", "top_p", "stop", "frequency_penalty", "presence_penalty", "seed", "logit_bias")},
}
"""The server's name → OpenAI's, for what every such endpoint takes."""


class OpenAI:
    """`is_chat_model`: chat completions (default) or text completions. `extensions` names further sampling fields that this endpoint
    takes at the top level under the server's own names (vLLM and Ramet: "regex", "top_k", "min_p", …)."""

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: ChatFormat | None = None,
        is_azure: bool = False,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        extensions: Sequence[str] = (),
    ) -> None:
        if is_azure:
            raise ConfigError("is_azure: give base_url the deployment's OpenAI-compatible URL (…/openai/v1) instead", param="is_azure")
        key = api_key or os.environ.get("OPENAI_API_KEY", "")
        url = base_url or os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
        self._http = HttpClient(url, {"Authorization": f"Bearer {key}"} if key else {})
        self._model, self._chat = model_name, chat_template
        self._is_chat = is_chat_model if is_chat_model is not None else True
        self._extensions = frozenset(extensions)

    async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        path, body = ("/chat/completions", self._chat_body(call)) if self._is_chat else ("/completions", self._text_body(call))
        events = cast(AsyncGenerator[dict[str, Any], None], self._http.events(path, body))
        meta: dict[str, Any] = {"finish_reason": None, "output_token_logprobs": []}
        async with aclosing(events):
            async for event in events:
                text = _take(event, meta)
                if text:
                    yield GenerateChunk(text)
        if not call.logprobs.get("return_logprob"):
            del meta["output_token_logprobs"]
        yield GenerateChunk("", meta, finished=True)

    async def score(
        self, conversation: Conversation, choices: Sequence[str], *, unconditional: bool = False, run_id: str = ""
    ) -> list[ChoiceScore]:
        """On text completions that can echo with logprobs (vLLM, Ramet, …)."""
        if self._is_chat or unconditional:
            what = "select" if self._is_chat else "select with unconditional_likelihood_normalized"
            advice = 'use gen(json_schema={"enum": [...]}) or regex' if self._is_chat else "use another choices_method"
            raise Unsupported(
                f"{what}: an OpenAI {'chat' if self._is_chat else 'completions'} endpoint cannot score texts; {advice}", param="choices"
            )
        prompt = self._text(conversation)
        body = {"model": self._model, "prompt": [prompt + choice for choice in choices], "max_tokens": 1, "echo": True, "logprobs": 1}
        reply = await self._http.post("/completions", {**body, "temperature": 0.0})
        rows = sorted(reply["choices"], key=lambda row: row["index"])
        return [_echoed(row["logprobs"], len(prompt), len(prompt) + len(choice)) for row, choice in zip(rows, choices, strict=True)]

    async def prefill(self, conversation: Conversation) -> None:
        """Nothing: such an endpoint has no way to say it."""

    async def chat_format(self) -> ChatFormat:
        if self._chat is None:
            raise Unsupported("an OpenAI endpoint does not tell its chat template; roles travel as messages")
        return self._chat

    async def flush_cache(self) -> None:
        raise Unsupported("flush_cache: an OpenAI endpoint has no such call")

    async def server_info(self) -> dict[str, Any]:
        return {"model": self._model, "base_url": self._http.base_url}

    async def close(self) -> None:
        await self._http.close()

    def _chat_body(self, call: GenerateCall) -> dict[str, Any]:
        messages = call.conversation.messages()
        if not messages:
            raise Unsupported("text outside of turns: a chat endpoint needs sgl.user(…) and sgl.assistant(…), or is_chat_model=False")
        if call.conversation.open_role != "assistant":
            raise Unsupported("gen outside of an assistant turn: a chat endpoint generates assistant messages only")
        if messages.pop()["content"]:
            raise Unsupported("text before a gen in the same assistant turn: a chat endpoint cannot continue a message; end the turn first")
        return {**self._common(call), "messages": messages, **self._chat_logprobs(call.logprobs)}

    def _text_body(self, call: GenerateCall) -> dict[str, Any]:
        wanted = int(call.logprobs.get("top_logprobs_num") or 0) if call.logprobs.get("return_logprob") else None
        return {**self._common(call), "prompt": self._text(call.conversation), **({} if wanted is None else {"logprobs": max(1, wanted)})}

    def _common(self, call: GenerateCall) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        for name, value in call.sampling.items():
            if name in self._extensions:
                body[name] = value
            elif name in NAMES:
                body[NAMES[name]] = value
            elif name == "json_schema" and self._is_chat:
                schema = {"name": "answer", "schema": json.loads(value), "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            else:
                raise Unsupported(
                    f"{name}: not part of the OpenAI API; if this endpoint takes it, say OpenAI(…, extensions=[{name!r}])", param=name
                )
        return body

    def _chat_logprobs(self, logprobs: Mapping[str, Any]) -> dict[str, Any]:
        if not logprobs.get("return_logprob"):
            return {}
        if logprobs.get("logprob_start_len", -1) != -1:
            raise Unsupported("logprob_start_len: a chat endpoint gives no logprobs of the prompt", param="logprob_start_len")
        return {"logprobs": True, "top_logprobs": int(logprobs.get("top_logprobs_num") or 0)}

    def _text(self, conversation: Conversation) -> str:
        if any(part.kind != "text" for part in conversation.parts) and self._chat is None:
            raise Unsupported("roles on a completions endpoint: give OpenAI(…, chat_template=ChatFormat(…)), or use is_chat_model=True")
        return conversation.render(self._chat or ChatFormat({}))


def _take(event: Mapping[str, Any], meta: dict[str, Any]) -> str:
    """Fold one stream event into the meta info; returns its new text."""
    usage = event.get("usage")
    if usage:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        counts = {"prompt_tokens": usage["prompt_tokens"], "completion_tokens": usage.get("completion_tokens", 0)}
        meta.update(id=event.get("id"), cached_tokens=cached, **counts)
    if not event.get("choices"):
        return ""
    choice = event["choices"][0]
    if choice.get("finish_reason"):
        meta["finish_reason"] = {"type": choice["finish_reason"]}
    for token in (choice.get("logprobs") or {}).get("content") or ():
        meta["output_token_logprobs"].append([token["logprob"], None, token["token"]])
    text = choice["text"] if "text" in choice else (choice.get("delta") or {}).get("content")
    return text or ""


def _echoed(logprobs: Mapping[str, Any], start: int, end: int) -> ChoiceScore:
    """The tokens that reach into the choice: the one across the border counts, the generated one does not."""
    found = [
        logprob or 0.0
        for token, logprob, offset in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["text_offset"], strict=True)
        if offset + len(token) > start and offset < end
    ]
    return ChoiceScore(tuple(range(len(found))), tuple(found))
