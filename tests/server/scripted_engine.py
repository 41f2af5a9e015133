"""A `GenerationEngine` that says what it is told, for tests of everything in front of the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.errors import InvalidRequest, RametError
from ramet.program.backend import ChatFormat
from ramet.runtime.cache_view import CacheView, Lookup
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.generation_engine import Health
from ramet.runtime.plan import ModelInfo
from ramet.runtime.request import Delta, EngineStats, Finish, FinishKind, Generation, KvHint, TokenLogprob

BOS = 256
EOS = 257
CONTEXT_LEN = 512


class Bytes:
    """One token per byte, a BOS in front, an EOS nobody can type."""

    vocab_size = 258
    eos_token_ids = (EOS,)
    special_ids = frozenset({BOS, EOS})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if skip_special_tokens:
            token_ids = [i for i in token_ids if i < 256]
        names = {BOS: b"<bos>", EOS: b"<eos>"}
        return b"".join(names.get(i, bytes([i % 256])) for i in token_ids).decode(errors="replace")

    def token_bytes(self, *, special: bool = False) -> tuple[bytes, ...]:
        return (*(bytes([i]) for i in range(256)), *((b"<bos>", b"<eos>") if special else (b"", b"")))


class Brackets:
    """`[role]content[/role]`."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        if any(message["content"] == "refuse me" for message in messages):
            raise InvalidRequest("the template refuses this message", param="messages")
        text = f"<tools:{','.join(t['function']['name'] for t in tools)}>" if tools else ""
        text += "".join(f"<{name}={value}>" for name, value in (variables or {}).items())
        for index, message in enumerate(messages):
            last = index == len(messages) - 1
            text += f"[{message['role']}]{message['content']}" + ("" if last and continue_final_message else f"[/{message['role']}]")
        return text + ("[assistant]" if add_generation_prompt else "")

    def chat_format(self) -> ChatFormat:
        return ChatFormat({role: (f"[{role}]", f"[/{role}]") for role in ("system", "user", "assistant")})


@dataclass
class ScriptedEngine:
    """Answers with `answer` (or `answers[prompt text]`), one byte per step; remembers every generation and how each ended."""

    answer: str = "Hello"
    answers: dict[str, str] = field(default_factory=dict)
    step_seconds: float = 0.0
    refusal: RametError | None = None
    ending: Finish | None = None
    cached_tokens: int = 0
    state: Health = field(default_factory=lambda: Health(True, 0.0))
    busy: bool = False
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)
    config: EngineConfig = field(default_factory=EngineConfig)
    seen: list[Generation] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    flushed: int = 0
    hints: list[KvHint] = field(default_factory=list)
    view: CacheView | None = None
    lookups: dict[str, Lookup] = field(default_factory=dict)
    counters: EngineStats = field(
        default_factory=lambda: EngineStats(total_tokens=4096, used_tokens=1024, prompt_tokens_total=80, cached_tokens_total=60)
    )

    tokenizer = Bytes()
    chat_template: Brackets | None = field(default_factory=Brackets)
    model = ModelInfo("tiny", "LlamaForCausalLM", 258, CONTEXT_LEN, 2, 2, 8, 1000, 4000, 64, "float32", (EOS,))

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        if self.refusal is not None:
            raise self.refusal
        wrong = [i for i in generation.input_ids or () if not 0 <= i < self.model.vocab_size]
        if wrong or not (generation.text or generation.input_ids):
            raise InvalidRequest("the prompt is not legal", param="input_ids" if generation.text is None else "text")
        self.seen.append(generation)
        started = time.monotonic()
        try:
            for delta in self._script(generation):
                await asyncio.sleep(self.step_seconds)
                if generation.request_id in self.aborted:
                    delta = Delta(
                        request_id=generation.request_id, finish=Finish(FinishKind.ABORT, message="aborted", status=499, code="cancelled")
                    )
                yield _timed(delta, started)
                if delta.finish is not None:
                    self.finished.append(generation.request_id)
                    return
        finally:
            if generation.request_id not in self.finished and generation.request_id not in self.aborted:
                self.aborted.append(generation.request_id)

    async def complete(self, generation: Generation) -> Delta:
        text, ids, logprobs, prompt_logprobs = "", [], [], []
        last = Delta(request_id=generation.request_id)
        stream = self.generate(generation)
        try:
            async for last in stream:
                text += last.text
                ids += last.token_ids
                logprobs += last.logprobs
                prompt_logprobs += last.prompt_logprobs
        finally:
            await stream.aclose()
        return _replace(last, text=text, token_ids=tuple(ids), logprobs=tuple(logprobs), prompt_logprobs=tuple(prompt_logprobs))

    def _script(self, generation: Generation) -> list[Delta]:
        prompt = list(generation.input_ids) if generation.input_ids is not None else self.tokenizer.encode(generation.text or "")
        text = self.answers.get(self.tokenizer.decode(prompt), self.answer)
        output = list(text.encode())[: generation.sampling.max_new_tokens]
        cut = len(output) < len(text.encode())
        finish = self.ending or (Finish(FinishKind.LENGTH) if cut else Finish(FinishKind.STOP, matched=EOS))
        base = {"request_id": generation.request_id, "prompt_tokens": len(prompt), "cached_tokens": self.cached_tokens}
        deltas = []
        for index, token in enumerate(output):
            deltas.append(
                Delta(
                    **base,
                    text=chr(token),
                    token_ids=(token,),
                    logprobs=_logprobs(generation, [token]),
                    prompt_logprobs=_prompt_logprobs(generation, prompt) if index == 0 else (),
                    completion_tokens=index + 1,
                )
            )
        return [*deltas, Delta(**base, finish=finish, completion_tokens=len(output))]

    async def abort(self, request_id: str) -> bool:
        running = any(g.request_id == request_id for g in self.seen) and request_id not in self.finished
        if running:
            self.aborted.append(request_id)
        return running

    async def abort_all(self) -> int:
        running = [g.request_id for g in self.seen if g.request_id not in self.finished + self.aborted]
        self.aborted += running
        return len(running)

    def hint_kv(self, hint: KvHint) -> None:
        self.hints.append(hint)

    async def flush_cache(self) -> bool:
        self.flushed += not self.busy
        return not self.busy

    async def cache_view(self, max_nodes: int = 200) -> CacheView:
        assert self.view is not None
        return self.view

    async def explain_cache(self, request_id: str) -> Lookup | None:
        return self.lookups.get(request_id)

    async def stats(self) -> EngineStats:
        return self.counters

    def health(self) -> Health:
        return self.state

    async def close(self) -> None:
        pass


def _logprobs(generation: Generation, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
    wanted = generation.logprobs
    if wanted is None:
        return ()
    top = tuple((65 + i, -0.5 * (i + 1)) for i in range(wanted.top))
    chosen = tuple((i, -3.0) for i in wanted.token_ids)
    return tuple(TokenLogprob(token, -0.25, top, chosen) for token in tokens)


def _prompt_logprobs(generation: Generation, prompt: Sequence[int]) -> tuple[TokenLogprob, ...]:
    if generation.logprobs is None or generation.logprobs.start_len < 0:
        return ()
    entries = _logprobs(generation, prompt[generation.logprobs.start_len :])
    first = TokenLogprob(prompt[0], None)
    return (first, *entries[1:]) if generation.logprobs.start_len == 0 else entries


def _timed(delta: Delta, started: float) -> Delta:
    return _replace(delta, first_token_latency=0.001, queue_time=0.0005, e2e_latency=time.monotonic() - started)


def _replace(delta: Delta, **changes: Any) -> Delta:
    from dataclasses import replace

    return replace(delta, **changes)
