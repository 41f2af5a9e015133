"""A Ramet server as backend, over its native routes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from ramet.errors import ConfigError, Unsupported
from ramet.lang.backends.http_client import HttpClient, error_for
from ramet.lang.backends.program_client import ProgramClient
from ramet.program.backend import ChatFormat, ChoiceScore, Conversation, GenerateCall, GenerateChunk
from ramet.program.boundary import ScoredRows, scored_rows

PREFILL_ONLY = {"max_new_tokens": 0, "temperature": 0.0}
NO_TEMPLATE = ChatFormat({})


class RuntimeEndpoint:
    """`base_url` like "http://localhost:30000". The chat format is the served model's own, asked for once."""

    def __init__(self, base_url: str, api_key: str | None = None, verify: bool | str | None = None) -> None:
        if base_url.rstrip("/").endswith("/v1"):
            advice = "leave out /v1, where the OpenAI routes are; sgl.OpenAI(model, base_url=…) is for servers that have nothing else"
            raise ConfigError(f"{base_url!r} is not the address of a Ramet server: {advice}", param="base_url")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = HttpClient(base_url, headers, verify=True if verify is None else verify)
        self._chat: ChatFormat | None = None
        self._asking: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Any]] = weakref.WeakKeyDictionary()
        self.programs = ProgramClient(self._http)

    @property
    def base_url(self) -> str:
        return self._http.base_url

    async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        body = {
            **await self._prompt(call.conversation),
            "sampling_params": dict(call.sampling),
            "group": call.run_id,
            **call.logprobs,
        }
        if not call.stream:
            reply = await self.native(body)
            yield GenerateChunk(reply["text"], reply["meta_info"], finished=True)
            return
        logprobs = _LogprobLists()
        async with aclosing(self.native_stream(body)) as events:
            async for event in events:
                meta = logprobs.gathered(event["meta_info"])
                yield GenerateChunk(event["text"], meta, finished=meta.get("finish_reason") is not None)

    async def native(self, body: Mapping[str, Any]) -> Any:
        """The reply of `/generate`: one, or a list of them. Raises what made a generation fail."""
        reply = await self._http.post("/generate", body)
        for each in reply if isinstance(reply, list) else [reply]:
            _raise_if_failed(each["meta_info"].get("finish_reason"))
        return reply

    async def native_stream(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of `/generate`, each with what is new."""
        events = self._http.events("/generate", {**body, "stream": True, "incremental": True})
        async with aclosing(cast(AsyncGenerator[dict[str, Any], None], events)) as stream:
            async for event in stream:
                _raise_if_failed(event["meta_info"].get("finish_reason"))
                yield event

    async def score(
        self, conversation: Conversation, choices: Sequence[str], *, unconditional: bool = False, run_id: str = ""
    ) -> list[ChoiceScore]:
        prompt = await self._prompt(conversation)
        text = prompt.pop("text")
        tokens = (await self._http.post("/tokenize", {"prompt": [text, *(text + choice for choice in choices)], **prompt}))["tokens"]
        wanted = scored_rows(tokens[0], tokens[1:])
        alone = wanted.alone() if unconditional else None
        found = await self._logprobs([wanted, *([alone] if alone else [])], run_id)
        return wanted.scores(found[: len(choices)], found[len(choices) :] if alone else None)

    async def _logprobs(self, asked: Sequence[ScoredRows], run_id: str) -> list[list[float | None]]:
        """Prompt logprobs of all rows, in one request."""
        body = {
            "input_ids": [list(row) for rows in asked for row in rows.rows],
            "sampling_params": PREFILL_ONLY,
            "group": run_id,
            "return_logprob": True,
            "logprob_start_len": [rows.ask_from for rows in asked for _ in rows.rows],
        }
        replies = await self.native(body)
        return [[entry[0] for entry in reply["meta_info"]["input_token_logprobs"]] for reply in replies]

    async def prefill(self, conversation: Conversation) -> None:
        await self._http.post("/generate", {**await self._prompt(conversation), "sampling_params": PREFILL_ONLY})

    async def chat_format(self) -> ChatFormat:
        if self._chat is None:
            found = (await self._model_info()).get("chat_format")
            self._chat = chat_format_from(found) if found else NO_TEMPLATE
        if not self._chat.borders:
            raise Unsupported("the served model has no chat template that can be taken apart into turns, so roles cannot be used with it")
        return self._chat

    async def _model_info(self) -> Any:
        """However many runs begin at the same time, one of them asks."""
        loop = asyncio.get_running_loop()
        task = self._asking.get(loop)
        if task is None or task.done():
            task = self._asking[loop] = asyncio.create_task(self._http.get("/model_info"))
        return await asyncio.shield(task)

    async def flush_cache(self) -> None:
        await self._http.post("/flush_cache", None)

    async def server_info(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._http.get("/server_info")
        return found

    async def close(self) -> None:
        await self._http.close()

    async def _prompt(self, conversation: Conversation) -> dict[str, Any]:
        """The fields of a request that say what to continue."""
        prompt = conversation.prompt(await self.chat_format() if conversation.has_turns else NO_TEMPLATE)
        return {"text": prompt.text, "add_special_tokens": prompt.add_special_tokens}


def chat_format_from(wire: Mapping[str, Any]) -> ChatFormat:
    borders = {role: (pair[0], pair[1]) for role, pair in wire["borders"].items()}
    return ChatFormat(borders, wire.get("bos", ""), wire.get("default_system", ""))


def _raise_if_failed(reason: Any) -> None:
    """Aborts and errors of the engine are exceptions here, not texts cut short."""
    if isinstance(reason, Mapping) and reason.get("type") in ("abort", "error"):
        status = int(reason.get("status_code") or 500)
        raise error_for(reason.get("err_type"), status, str(reason.get("message") or "the server aborted the generation"))


class _LogprobLists:
    """In an incremental stream each event brings the logprobs of its own tokens; the meta info is to hold all of them."""

    def __init__(self) -> None:
        self._lists: dict[str, list[Any]] = {}

    def gathered(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(meta)
        for name, value in meta.items():
            if name.endswith("logprobs") and isinstance(value, list):
                found[name] = self._lists[name] = self._lists.get(name, []) + value
        return {**found, **self._lists}
