"""An engine as what programs run on: the `Backend` of the program interpreter over a `GenerationEngine` of this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Literal, cast

from ramet.errors import RametError, Unsupported
from ramet.program.backend import ChatFormat, ChoiceScore, Conversation, GenerateCall, GenerateChunk, Prompt
from ramet.program.boundary import ScoredRows, scored_rows
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.runtime.engine.native_format import NativeCall, NativeResult, error_of, expand
from ramet.runtime.request import Delta, FinishKind, Generation, KvHint, LogprobParams, SamplingParams

Stream = Callable[[Generation], AsyncIterator[Delta]]
Complete = Callable[[Generation], Awaitable[Delta]]
PREFILL_ONLY = SamplingParams(max_new_tokens=0, temperature=0.0)
NO_TEMPLATE = ChatFormat({})
LONG_TEXT = 4096
"""Characters from which tokenising leaves the event loop."""
END_SECONDS = 0.01


class EngineBackend:
    """Runs programs on a `GenerationEngine` of this process: no HTTP, no copies of text. `stream` and `complete` replace the engine's
    own, for whoever wants to see what passes. `owner`: who ends the engine when nobody holds it any more; held as long as this is."""

    def __init__(
        self, engine: GenerationEngine, *, stream: Stream | None = None, complete: Complete | None = None, owner: object = None
    ) -> None:
        self._engine, self._owner = engine, owner
        self._stream, self._complete = stream or engine.generate, complete or engine.complete
        self._chat: ChatFormat | None = None

    async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        logprobs = dict(call.logprobs)
        tokenizer = self._engine.tokenizer if logprobs.pop("return_text_in_logprobs", False) else None
        prompt = await self._prompt(call.conversation)
        asked = NativeCall(
            text=prompt.text,
            add_special_tokens=prompt.add_special_tokens,
            sampling_params=call.sampling,
            group=call.run_id,
            **logprobs,
        )
        [generation] = expand(asked).generations
        generation = replace(generation, path=call.hints.get("path", 0), length_bound=call.hints.get("max_tokens"))
        result = NativeResult(generation.logprobs, tokenizer)
        if not call.stream:
            whole = _checked(await self._complete(generation))
            result.add(whole)
            yield GenerateChunk(whole.text, result.reply()["meta_info"], finished=True)
            return
        async with aclosing(self._deltas(generation)) as deltas:
            async for delta in deltas:
                result.add(delta)
                finished = delta.finish is not None
                yield GenerateChunk(delta.text, result.reply()["meta_info"] if finished else {}, finished)

    async def _deltas(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        async with aclosing(cast(AsyncGenerator[Delta, None], self._stream(generation))) as deltas:
            async for delta in deltas:
                yield _checked(delta)

    async def score(
        self, conversation: Conversation, choices: Sequence[str], *, unconditional: bool = False, run_id: str = ""
    ) -> list[ChoiceScore]:
        prompt, encode = await self._prompt(conversation), self._engine.tokenizer.encode
        texts = [prompt.text, *(prompt.text + choice for choice in choices)]
        rows = [encode(text, add_special_tokens=prompt.add_special_tokens) for text in texts]
        wanted = scored_rows(rows[0], rows[1:])
        found = await self._logprobs(wanted, run_id)
        return wanted.scores(found, await self._logprobs(wanted.alone(), run_id) if unconditional else None)

    async def _logprobs(self, asked: ScoredRows, run_id: str) -> list[list[float | None]]:
        """All rows at once; the engine computes their common prefix once."""
        return list(await asyncio.gather(*(self._row_logprobs(row, asked.ask_from, run_id) for row in asked.rows)))

    async def _row_logprobs(self, row: tuple[int, ...], start: int, run_id: str) -> list[float | None]:
        generation = Generation(
            request_id=uuid.uuid4().hex,
            input_ids=row,
            sampling=PREFILL_ONLY,
            logprobs=LogprobParams(start_len=start),
            group=run_id,
        )
        return [entry.logprob for entry in _checked(await self._complete(generation)).prompt_logprobs]

    async def prefill(self, conversation: Conversation) -> None:
        await self._prefill(conversation, "")

    async def _prefill(self, conversation: Conversation, run_id: str) -> None:
        prompt = await self._prompt(conversation)
        generation = Generation(
            request_id=uuid.uuid4().hex,
            text=prompt.text,
            add_special_tokens=prompt.add_special_tokens,
            sampling=PREFILL_ONLY,
            group=run_id,
        )
        _checked(await self._complete(generation))

    async def num_tokens(self, conversation: Conversation) -> int:
        return len(await self._tokens(conversation))

    # The program's KvHints. Whatever makes a hint fail, a generation would have told.

    async def pin(self, conversation: Conversation, run_id: str) -> None:
        await self._hint("pin", conversation, run_id)

    async def free(self, conversation: Conversation, run_id: str) -> None:
        await self._hint("free", conversation, run_id)

    async def prefetch(self, conversation: Conversation, run_id: str) -> None:
        with suppress(RametError):
            await self._prefill(conversation, run_id)

    def ended(self, run_id: str) -> None:
        """Told a little later: whoever waits for the run's result goes first."""
        if run_id:
            asyncio.get_running_loop().call_later(END_SECONDS, self._engine.hint_kv, KvHint(kind="end", run_id=run_id))

    async def _hint(self, kind: Literal["pin", "free"], conversation: Conversation, run_id: str) -> None:
        if run_id:
            with suppress(RametError):
                self._engine.hint_kv(KvHint(kind=kind, run_id=run_id, token_ids=tuple(await self._tokens(conversation))))

    async def chat_format(self) -> ChatFormat:
        if self._chat is None:
            template = self._engine.chat_template
            if template is None:
                raise Unsupported("the model has no chat template, so roles cannot be used with it")
            self._chat = template.chat_format()
        return self._chat

    async def flush_cache(self) -> None:
        await self._engine.flush_cache()

    async def server_info(self) -> dict[str, Any]:
        stats = await self._engine.stats()
        return {name: getattr(stats, name) for name in stats.__dataclass_fields__}

    async def close(self) -> None:
        await self._engine.close()

    async def _tokens(self, conversation: Conversation) -> list[int]:
        prompt = await self._prompt(conversation)
        encode = self._engine.tokenizer.encode
        if len(prompt.text) < LONG_TEXT:
            return encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        return await asyncio.to_thread(encode, prompt.text, add_special_tokens=prompt.add_special_tokens)

    async def _prompt(self, conversation: Conversation) -> Prompt:
        return conversation.prompt(await self.chat_format() if conversation.has_turns else NO_TEMPLATE)


def _checked(delta: Delta) -> Delta:
    """Aborts and errors are exceptions here, not texts cut short."""
    if delta.finish is not None and delta.finish.kind in (FinishKind.ABORT, FinishKind.ERROR):
        raise error_of(delta.finish)
    return delta
