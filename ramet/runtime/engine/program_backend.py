"""An engine as what programs run on: the `Backend` of the program interpreter over a `GenerationEngine` of this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

from ramet.errors import Unsupported
from ramet.program.backend import ChatFormat, ChoiceScore, Conversation, GenerateCall, GenerateChunk, Prompt
from ramet.program.boundary import ScoredRows, scored_rows
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.runtime.engine.native_format import NativeCall, NativeResult, error_of, expand
from ramet.runtime.request import Delta, FinishKind, Generation, LogprobParams, SamplingParams

PREFILL_ONLY = SamplingParams(max_new_tokens=0, temperature=0.0)
NO_TEMPLATE = ChatFormat({})


class EngineBackend:
    """Runs programs on a `GenerationEngine` of this process: no HTTP, no copies of text."""

    def __init__(self, engine: GenerationEngine) -> None:
        self._engine = engine
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
        result = NativeResult(generation.logprobs, tokenizer)
        async with aclosing(self._deltas(generation)) as deltas:
            async for delta in deltas:
                result.add(delta)
                finished = delta.finish is not None
                yield GenerateChunk(delta.text, result.reply()["meta_info"] if finished else {}, finished)

    async def _deltas(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        """The engine's stream, in which an abort or error is an exception."""
        async with aclosing(cast(AsyncGenerator[Delta, None], self._engine.generate(generation))) as deltas:
            async for delta in deltas:
                if delta.finish is not None and delta.finish.kind in (FinishKind.ABORT, FinishKind.ERROR):
                    raise error_of(delta.finish)
                yield delta

    async def score(self, conversation: Conversation, choices: Sequence[str], *, unconditional: bool = False) -> list[ChoiceScore]:
        prompt, encode = await self._prompt(conversation), self._engine.tokenizer.encode
        texts = [prompt.text, *(prompt.text + choice for choice in choices)]
        rows = [encode(text, add_special_tokens=prompt.add_special_tokens) for text in texts]
        wanted = scored_rows(rows[0], rows[1:])
        found = await self._logprobs(wanted)
        return wanted.scores(found, await self._logprobs(wanted.alone()) if unconditional else None)

    async def _logprobs(self, asked: ScoredRows) -> list[list[float | None]]:
        """All rows at once; the engine computes their common prefix once."""
        return list(await asyncio.gather(*(self._row_logprobs(row, asked.ask_from) for row in asked.rows)))

    async def _row_logprobs(self, row: tuple[int, ...], start: int) -> list[float | None]:
        generation = Generation(request_id=uuid.uuid4().hex, input_ids=row, sampling=PREFILL_ONLY, logprobs=LogprobParams(start_len=start))
        async with aclosing(self._deltas(generation)) as deltas:
            return [entry.logprob async for delta in deltas for entry in delta.prompt_logprobs]

    async def prefill(self, conversation: Conversation) -> None:
        prompt = await self._prompt(conversation)
        generation = Generation(
            request_id=uuid.uuid4().hex, text=prompt.text, add_special_tokens=prompt.add_special_tokens, sampling=PREFILL_ONLY
        )
        async with aclosing(self._deltas(generation)) as deltas:
            async for _ in deltas:
                pass

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

    async def _prompt(self, conversation: Conversation) -> Prompt:
        return conversation.prompt(await self.chat_format() if conversation.has_turns else NO_TEMPLATE)
