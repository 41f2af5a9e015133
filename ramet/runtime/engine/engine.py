"""The offline engine: a model in your script, without a server.

    with Engine("path/to/model") as engine:
        engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 8})["text"]

The calls and their replies are those of SGLang's `Engine`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from types import TracebackType
from typing import Any, Self, TypeVar

from ramet.errors import InvalidRequest, RequestNotFound, Unsupported, WorkerDied
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine import cache_report
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.fan_out import complete_all, stream_all
from ramet.runtime.engine.native_format import Expansion, NativeCall, NativeResult, expand
from ramet.runtime.engine.worker_parts import flat_options
from ramet.version import __version__

T = TypeVar("T")
Reply = dict[str, Any]
Starter = Callable[[EngineConfig], AsyncEngine]

_POSITIONAL = (
    "prompt",
    "sampling_params",
    "input_ids",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "token_ids_logprob",
)
_FURTHER = ("rid", "priority", "extra_key", "cache_salt", "group")
_UNSUPPORTED = {
    "image_data": "the loaded model reads text only",
    "audio_data": "the loaded model reads text only",
    "video_data": "the loaded model reads text only",
    "lora_path": "this build has no adapters",
    "custom_logit_processor": "code from a request never runs here; use a grammar or logit_bias",
    "return_hidden_states": "this build gives no hidden states",
}


class Engine:
    """Works in any thread and inside a running event loop; several may live side by side. The model runs in a process of its own,
    so that a script needs no `if __name__ == "__main__"`.

    `options` are the launch options of `ramet serve`, as keywords; only warnings are logged unless `log_level` says otherwise.
    `start` replaces how the engine comes up (for tests).
    """

    def __init__(self, model_path: str | None = None, *, start: Starter = AsyncEngine.start_now, **options: Any) -> None:
        self.config = EngineConfig.from_options({"model_path": model_path, "log_level": "warning", **options})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ramet-engine", daemon=True)
        self.async_engine = start(self.config)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _shut_down, self.async_engine, self._loop, self._thread, os.getpid())

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        return_logprob: bool | Sequence[bool] | None = None,
        logprob_start_len: int | Sequence[int] | None = None,
        top_logprobs_num: int | Sequence[int] | None = None,
        token_ids_logprob: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: bool = False,
        *,
        return_text_in_logprobs: bool = False,
        **fields: Any,
    ) -> Reply | list[Reply] | Iterator[Reply]:
        """One prompt → a reply; a list of prompts, or n > 1 → a list of replies, in order; `stream` → an iterator of replies that hold
        the text so far (those of a batch carry `index`). `fields`: rid, priority, extra_key, cache_salt, group.

        Raises `ramet.errors` types: `UserError` when the request is not legal, `WorkerDied` … when it could not be finished.
        Leaving a stream, and Ctrl-C, abort the generation.
        """
        expansion = expand(
            NativeCall(
                text=prompt,
                input_ids=input_ids,
                sampling_params=sampling_params,
                return_logprob=return_logprob,
                logprob_start_len=logprob_start_len,
                top_logprobs_num=top_logprobs_num,
                token_ids_logprob=token_ids_logprob,
                **_known_fields(fields),
            )
        )
        run = _Run(self.async_engine, expansion, return_text_in_logprobs)
        return self._iterate(run.stream()) if stream else self._wait(run.complete())

    async def async_generate(self, *arguments: Any, stream: bool = False, **fields: Any) -> Reply | list[Reply] | AsyncIterator[Reply]:
        """`generate` on the caller's event loop; with `stream`, `async for reply in await engine.async_generate(..., stream=True)`."""
        with_text = fields.pop("return_text_in_logprobs", False)
        given = dict(zip(_POSITIONAL, arguments, strict=False)) | fields
        named = {("text" if name == "prompt" else name): given.pop(name) for name in _POSITIONAL if name in given}
        run = _Run(self.async_engine, expand(NativeCall(**named, **_known_fields(given))), with_text)
        return run.stream() if stream else await run.complete()

    def encode(self, *_arguments: Any, **_fields: Any) -> None:
        raise Unsupported("encode: the loaded model generates text and gives no embeddings")

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        self._wait(self.async_engine.abort_all() if abort_all else self.async_engine.abort(rid))

    def flush_cache(self) -> bool:
        """Empty the prefix cache; False (and nothing done) while requests run."""
        return self._wait(self.async_engine.flush_cache())

    def cache_report(self, max_nodes: int = 200) -> dict[str, Any]:
        """The prefix cache: pool, tree, where prompts part, and tokens computed against the least possible (docs/cache.md)."""
        return cache_report.report(self._wait(self.async_engine.cache_view(max_nodes)), self._text)

    def explain_cache(self, rid: str) -> dict[str, Any]:
        """Why the prompt of this request was cached as far as it was. Raises `RequestNotFound` when that is too long ago."""
        lookup = self._wait(self.async_engine.explain_cache(rid))
        if lookup is None:
            raise RequestNotFound(f"no request {rid!r} among the last that were scheduled", param="rid")
        return cache_report.explain(lookup, self._text)

    def _text(self, token_ids: Sequence[int]) -> str:
        return self.async_engine.tokenizer.decode(token_ids, skip_special_tokens=False)

    def get_server_info(self) -> dict[str, Any]:
        """Every launch option, the model's numbers, and the worker's counters of this moment."""
        model, capacity = asdict(self.async_engine.model), self.async_engine.capacity
        state = asdict(self._wait(self.async_engine.stats()))
        return flat_options(self.config) | {
            "version": __version__,
            "model": model,
            "max_total_num_tokens": capacity.num_tokens,
            "max_running_requests": capacity.max_running,
            "internal_states": [state],
        }

    def shutdown(self) -> None:
        """End the worker and free its memory. Idempotent; also done when the engine is garbage, and when the script ends."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the engine's own loop. Ctrl-C here cancels it there."""
        if not self._finalizer.alive:
            work.close()
            raise WorkerDied("the engine was shut down")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def _iterate(self, replies: AsyncGenerator[Reply, None]) -> Iterator[Reply]:
        try:
            while True:
                reply = self._wait(_next(replies))
                if reply is None:
                    return
                yield reply
        finally:
            if self._finalizer.alive:
                self._wait(_close(replies))


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of `generate` on some event loop."""

    engine: AsyncEngine
    expansion: Expansion
    with_text: bool

    async def complete(self) -> Reply | list[Reply]:
        deltas = await complete_all(self.engine, self.expansion.generations)
        results = self._results()
        for result, delta in zip(results, deltas, strict=True):
            result.add(delta)
        replies = [result.reply() for result in results]
        return replies if self.expansion.is_list else replies[0]

    async def stream(self) -> AsyncGenerator[Reply, None]:
        results = self._results()
        async with aclosing(stream_all(self.engine, self.expansion.generations)) as deltas:
            async for index, delta in deltas:
                results[index].add(delta)
                reply = results[index].reply()
                yield reply | {"index": index} if self.expansion.is_list else reply

    def _results(self) -> list[NativeResult]:
        tokenizer = self.engine.tokenizer if self.with_text else None
        return [NativeResult(generation.logprobs, tokenizer) for generation in self.expansion.generations]


async def _next(replies: AsyncGenerator[Reply, None]) -> Reply | None:
    return await anext(replies, None)


async def _close(replies: AsyncGenerator[Reply, None]) -> None:
    await replies.aclose()


def _known_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Raises `Unsupported` for what SGLang has and this build has not, and `InvalidRequest` for what nobody has."""
    for name, value in fields.items():
        if name in _UNSUPPORTED and value not in (None, False, [], ""):
            raise Unsupported(f"{name}: {_UNSUPPORTED[name]}", param=name)
        if name not in _FURTHER and name not in _UNSUPPORTED:
            near = get_close_matches(name, [*_POSITIONAL, *_FURTHER], n=3)
            raise InvalidRequest(f"unknown argument '{name}'" + (f"; near ones: {', '.join(near)}" if near else ""), param=name)
    return {name: value for name, value in fields.items() if name in _FURTHER}


def _shut_down(engine: AsyncEngine, loop: asyncio.AbstractEventLoop, thread: threading.Thread, process_id: int) -> None:
    """A fork of the process that made the engine owns nothing of it."""
    if os.getpid() != process_id:
        return
    engine.close_now()
    loop.call_soon_threadsafe(loop.stop)
    if threading.current_thread() is not thread:
        thread.join()
        loop.close()
