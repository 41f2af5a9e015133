"""How each kind of server is asked, and how its stream is read: the same load for every backend."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from ramet.cli.benchmark.workloads import BenchRequest
from ramet.errors import ConfigError


@dataclass(slots=True)
class Outcome:
    """What one request brought. Times are `time.perf_counter()` seconds; `token_times` has one entry per output token."""

    started: float = 0.0
    ended: float = 0.0
    token_times: list[float] = field(default_factory=list)
    text: str = ""
    prompt_len: int = 0
    output_len: int = 0
    cached_tokens: int = 0
    error: str = ""

    @property
    def latency(self) -> float:
        return self.ended - self.started

    @property
    def first_token_latency(self) -> float:
        return (self.token_times[0] if self.token_times else self.ended) - self.started

    def add_tokens(self, count: int) -> None:
        """`count` new tokens arrived now; tokens of one chunk are spread evenly over the time since the last."""
        now = time.perf_counter()
        last = self.token_times[-1] if self.token_times else now
        self.token_times += [last + (now - last) * (i + 1) / count for i in range(count)]


@dataclass(frozen=True, slots=True)
class Ask:
    """How requests are to be made, whatever the backend."""

    model: str
    stream: bool = True
    ignore_eos: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


Body = Callable[[BenchRequest, Ask], dict[str, Any]]
Read = Callable[[dict[str, Any], Outcome], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of server: the route, a request's body, and what an event (or the whole reply) adds to the outcome."""

    path: str
    body: Body
    read: Read
    takes_ids: bool = True


def _native_body(request: BenchRequest, ask: Ask) -> dict[str, Any]:
    prompt = {"text": request.prompt} if isinstance(request.prompt, str) else {"input_ids": list(request.prompt)}
    sampling = {"temperature": 0.0, "max_new_tokens": request.output_len, "ignore_eos": ask.ignore_eos}
    return {**prompt, "sampling_params": sampling, "stream": ask.stream, **ask.extra}


def _ramet_body(request: BenchRequest, ask: Ask) -> dict[str, Any]:
    return _native_body(request, ask) | {"incremental": True}


def _openai_body(request: BenchRequest, ask: Ask) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": ask.model,
        "max_tokens": request.output_len,
        "temperature": 0.0,
        "ignore_eos": ask.ignore_eos,
        "stream": ask.stream,
    }
    if ask.stream:
        body["stream_options"] = {"include_usage": True}
    return body | dict(ask.extra)


def _completion_body(request: BenchRequest, ask: Ask) -> dict[str, Any]:
    prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
    return {"prompt": prompt, **_openai_body(request, ask)}


def _chat_body(request: BenchRequest, ask: Ask) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": request.prompt}], **_openai_body(request, ask)}


def _read_ramet(event: dict[str, Any], outcome: Outcome) -> None:
    """The text comes in pieces."""
    before = outcome.text
    _read_native(event, outcome)
    outcome.text = before + event["text"]


def _read_native(event: dict[str, Any], outcome: Outcome) -> None:
    """Counters and text are cumulative."""
    meta = event["meta_info"]
    new = meta["completion_tokens"] - outcome.output_len
    outcome.output_len = meta["completion_tokens"]
    outcome.prompt_len = meta["prompt_tokens"]
    outcome.cached_tokens = meta.get("cached_tokens", 0)
    outcome.text = event["text"]
    if new:
        outcome.add_tokens(new)
    if (meta["finish_reason"] or {}).get("type") == "abort":
        outcome.error = f"aborted: {meta['finish_reason'].get('message')}"


def _read_openai(event: dict[str, Any], outcome: Outcome) -> None:
    """Without a count per chunk, a chunk with text counts as one token; the usage at the end has the truth."""
    for choice in event["choices"]:
        part = choice.get("delta") or choice.get("message") or choice
        text = part.get("content") or part.get("reasoning_content") or part.get("text") or ""
        if text:
            outcome.text += text
            outcome.add_tokens(1)
    usage = event.get("usage")
    if usage:
        outcome.prompt_len, outcome.output_len = usage["prompt_tokens"], usage["completion_tokens"]
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


_COMPLETIONS = Target("/v1/completions", _completion_body, _read_openai)
_CHAT = Target("/v1/chat/completions", _chat_body, _read_openai, takes_ids=False)
_NATIVE = Target("/generate", _native_body, _read_native)

TARGETS: Mapping[str, Target] = {
    "ramet": Target("/generate", _ramet_body, _read_ramet),
    "ramet-oai": _COMPLETIONS,
    "ramet-oai-chat": _CHAT,
    "sglang": _NATIVE,
    "sglang-native": _NATIVE,
    "sglang-oai": _COMPLETIONS,
    "sglang-oai-chat": _CHAT,
    "vllm": _COMPLETIONS,
    "vllm-chat": _CHAT,
    "openai": _COMPLETIONS,
    "openai-chat": _CHAT,
}


def target_of(backend: str) -> Target:
    if backend not in TARGETS:
        raise ConfigError(f"--backend '{backend}' is none of {', '.join(TARGETS)}")
    return TARGETS[backend]


async def send(client: httpx.AsyncClient, target: Target, request: BenchRequest, ask: Ask) -> Outcome:
    """One request from start to end; a failure is in the outcome, not raised."""
    outcome = Outcome(started=time.perf_counter())
    try:
        async with client.stream("POST", target.path, json=target.body(request, ask)) as response:
            if response.status_code != 200:
                outcome.error = f"HTTP {response.status_code}: {(await response.aread()).decode(errors='replace')[:500]}"
            elif ask.stream:
                await _read_stream(response, target, outcome)
            else:
                target.read(json.loads(await response.aread()), outcome)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.ended = time.perf_counter()
    return outcome


async def _read_stream(response: httpx.Response, target: Target, outcome: Outcome) -> None:
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            outcome.error = str(event["error"])
            return
        target.read(event, outcome)
    outcome.error = outcome.error or "the stream ended without [DONE]"
