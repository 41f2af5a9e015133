"""What every route needs, handed to the app instead of living in a module."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from ramet.errors import ModelNotFound
from ramet.log import get_logger
from ramet.runtime.config import ServerConfig
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.runtime.request import Delta, Generation
from ramet.server.metrics import Metrics

logger = get_logger(__name__)

DEFAULT_MODEL_ALIAS = "default"
"""SGLang's clients send this when they do not care."""

LONG_TEXT = 8192
"""Characters from which tokenising leaves the event loop's thread."""


@dataclass(frozen=True, slots=True)
class ServerContext:
    engine: GenerationEngine
    config: ServerConfig
    metrics: Metrics
    started: int  # Unix seconds
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)  # a client's rid → the engine's ids, while it runs

    @property
    def model_name(self) -> str:
        """The name in replies."""
        return self.config.engine.model.served_model_name or self.engine.model.name

    def check_model(self, name: str | None) -> None:
        """Raise `ModelNotFound` unless `name` is a name of the served model."""
        names = {self.model_name, self.engine.model.name, self.config.engine.model.model_path, DEFAULT_MODEL_ALIAS, None}
        if name not in names:
            raise ModelNotFound(f"model '{name}' is not served here; served: '{self.model_name}'", param="model")

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text → token ids, away from the event loop when the text is long."""
        tokenizer = self.engine.tokenizer
        if len(text) < LONG_TEXT:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)

    @contextmanager
    def group(self, rid: str, generations: Sequence[Generation]) -> Iterator[None]:
        """Let `abort(rid)` reach all parts of one HTTP request while it runs."""
        self.groups[rid] = tuple(generation.request_id for generation in generations)
        try:
            yield
        finally:
            self.groups.pop(rid, None)

    async def abort(self, rid: str) -> bool:
        """Abort the request, or all parts of it, that has exactly this id; False when none is running."""
        found = [await self.engine.abort(request_id) for request_id in self.groups.get(rid, (rid,))]
        return any(found)

    async def generate(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        """The engine's stream, measured and, on demand, logged. Closing it aborts the generation."""
        self._log_request(generation)
        async with aclosing(self.metrics.observe(self.engine.generate(generation))) as deltas:
            async for delta in deltas:
                if delta.finish is not None and self.config.engine.log.log_requests:
                    _log_finish(delta)
                yield delta

    async def complete(self, generation: Generation) -> Delta:
        """`generate`, joined."""
        self._log_request(generation)
        whole = await self.metrics.observe_whole(self.engine.complete(generation))
        if self.config.engine.log.log_requests:
            _log_finish(whole)
        return whole

    async def token_limit(self) -> int:
        """Longest prompt and output together: the context, or the KV pool where that is smaller."""
        if not self.metrics.stats.total_tokens:
            self.metrics.stats = await self.engine.stats()
        return min(self.engine.model.context_len, self.metrics.stats.total_tokens or self.engine.model.context_len)

    def _log_request(self, generation: Generation) -> None:
        if self.config.engine.log.log_requests:
            logger.info("request %s: %s", generation.request_id, json.dumps(_summary(generation)))


def _log_finish(last: Delta) -> None:
    kind = last.finish.kind.value if last.finish else "unfinished"
    logger.info("finished %s: %s, %d tokens", last.request_id, kind, last.completion_tokens)


def _summary(generation: Generation) -> dict[str, object]:
    sampling = generation.sampling
    return {
        "text": generation.text,
        "num_input_ids": len(generation.input_ids or ()),
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "priority": generation.priority,
    }


async def get_context(request: Request) -> ServerContext:
    """A coroutine, as is every dependency here: FastAPI runs plain functions in a pool of threads, each time."""
    context: ServerContext = request.app.state.context
    return context


Context = Annotated[ServerContext, Depends(get_context)]
