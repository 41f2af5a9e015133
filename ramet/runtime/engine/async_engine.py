"""The engine as the server sees it: text in, text out, on any event loop and any thread.

caller's loop                          supervisor's thread                    worker
generate() ─ build request ─────────────── Submit ───────────────────────────► plan, run, commit
    ▲                                                                             │
    └── one wake-up per loop and step ◄── detokenise, stop strings ◄── Outputs ◄──┘
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal

from ramet.errors import DeadlineExceeded, RametError, WorkerDied
from ramet.log import get_logger
from ramet.runtime.cache_view import CacheView, Lookup
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.delta_assembler import DeltaAssembler, joined
from ramet.runtime.engine.generation_engine import ChatTemplate, Health, Tokenizer
from ramet.runtime.engine.messages import Abort, ExplainMiss, Flush, GetStats, Hint, LookAtCache, Reply, Submit
from ramet.runtime.engine.processes import ProcessWorker, ThreadWorker, WorkerHandle
from ramet.runtime.engine.request_builder import RequestBuilder
from ramet.runtime.engine.request_table import Delivery, Entry, RequestTable, Stream
from ramet.runtime.engine.result_cache import Recording, ResultCache, ResultKey, result_key
from ramet.runtime.engine.supervisor import Supervisor
from ramet.runtime.engine.worker_parts import MODEL_EXECUTOR, MODEL_TEXT, ExecutorFactory, TextFactory, TextParts, WorkerSpec
from ramet.runtime.plan import Capacity, ModelInfo
from ramet.runtime.request import Delta, EngineStats, Finish, FinishKind, Generation, KvHint, Request, RequestOutput
from ramet.runtime.resolve import check

_log = get_logger(__name__)
_LONG_TEXT = 4096  # characters; longer prompts are tokenised off the event loop
_DEADLINE_GRACE_SECONDS = 0.5


class AsyncEngine:
    """Implements `GenerationEngine`. Make one with `start` or `start_now`."""

    def __init__(
        self,
        config: EngineConfig,
        launch: Callable[[], WorkerHandle],
        load_text: Callable[[], TextParts],
        on_end: Callable[[RametError], None] | None = None,
    ) -> None:
        """`start_now` over any kind of worker."""
        self._config = config
        self._on_end = on_end
        self._table = RequestTable()
        self._calls: dict[int, Future[Reply]] = {}
        self._call_ids = itertools.count()
        self._lock = threading.Lock()  # a submission and the worker's death exclude each other
        self._supervisor = Supervisor(launch, self, config.supervision)
        self._supervisor.start()
        try:  # while the worker loads the weights
            self._text = load_text()
            self._token_bytes = {skip: self._text.tokenizer.token_bytes(special=not skip) for skip in (True, False)}  # skip_special_tokens
            self._ready = self._supervisor.wait_ready()
        except BaseException:
            self._supervisor.close()
            raise
        self._results = ResultCache(config.backend.result_cache_tokens)
        self._builder = RequestBuilder(config, self.tokenizer, self._ready)

    @classmethod
    async def start(cls, config: EngineConfig, **parts: Any) -> AsyncEngine:
        """`start_now` without blocking the event loop. Cancelling it ends what was being started."""
        starting = asyncio.ensure_future(asyncio.to_thread(cls.start_now, config, **parts))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_close_late)
            raise

    @classmethod
    def start_now(
        cls,
        config: EngineConfig,
        *,
        worker: Literal["process", "thread"] = "process",
        executor_factory: str | ExecutorFactory = MODEL_EXECUTOR,
        text_factory: str | TextFactory = MODEL_TEXT,
        on_end: Callable[[RametError], None] | None = None,
    ) -> AsyncEngine:
        """Start a worker and block until it has loaded the model. Raises what the worker raised: `ModelNotFound`,
        `OutOfMemory`, `ConfigError` …

        `on_end` is called, on a thread of the engine, when the worker has died and no other will be started. The factories are for
        tests; a worker process needs them as "module:function".
        """
        check(config)
        spec = WorkerSpec(config, executor_factory, text_factory)
        kind = ProcessWorker if worker == "process" else ThreadWorker
        return cls(config, lambda: kind(spec), spec.load_text, on_end)

    # What the engine is.

    @property
    def model(self) -> ModelInfo:
        return self._ready.model

    @property
    def capacity(self) -> Capacity:
        return self._ready.capacity

    @property
    def config(self) -> EngineConfig:
        return self._config

    @property
    def tokenizer(self) -> Tokenizer:
        return self._text.tokenizer

    @property
    def chat_template(self) -> ChatTemplate | None:
        return self._text.chat_template

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        return self._text.generation_defaults

    @property
    def worker_process_id(self) -> int | None:
        return self._supervisor.process_id

    # What it does.

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        """See `GenerationEngine.generate`."""
        entry, request = await self._submit(generation, self._config.schedule.stream_interval)
        try:
            finished = False
            while not finished:
                delta = await self._next(entry, request)
                finished = delta.finish is not None
                yield delta
        finally:
            self._abandon(entry)

    async def complete(self, generation: Generation) -> Delta:
        """The whole generation as one delta: the same as joining what `generate` streams, without waking the caller at every token."""
        entry, request = await self._submit(generation, None)
        try:
            deltas = [await self._next(entry, request)]
            while deltas[-1].finish is None:
                deltas.append(await self._next(entry, request))
            return joined(deltas)
        finally:
            self._abandon(entry)

    async def abort(self, request_id: str) -> bool:
        wire_id = self._table.wire_id_of(request_id)
        if wire_id is None:
            return False
        self._supervisor.send(Abort((wire_id,)))
        return True

    async def abort_all(self) -> int:
        num_requests = len(self._table)
        self._supervisor.send(Abort(None))
        return num_requests

    def hint_kv(self, hint: KvHint) -> None:
        self._supervisor.send(Hint(hint))

    async def flush_cache(self) -> bool:
        self._results.clear()
        return (await self._call(Flush)).done

    async def cache_view(self, max_nodes: int = 200) -> CacheView:
        view = (await self._call(lambda call_id: LookAtCache(call_id, max_nodes))).cache
        assert view is not None, "LookAtCache is answered with the cache"
        return view

    async def explain_cache(self, request_id: str) -> Lookup | None:
        return (await self._call(lambda call_id: ExplainMiss(call_id, request_id))).lookup

    async def stats(self) -> EngineStats:
        stats = (await self._call(GetStats)).stats
        assert stats is not None, "GetStats is answered with stats"
        return replace(stats, result_hits_total=self._results.num_hits)

    def health(self) -> Health:
        return self._supervisor.health()

    async def close(self) -> None:
        """End the worker; requests in flight end with an error. Idempotent."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """`close` for callers without an event loop."""
        self._supervisor.close()

    # A request's way in.

    async def _submit(self, generation: Generation, interval: int | None) -> tuple[Entry, Request]:
        if len(generation.text or "") > _LONG_TEXT:
            request = await asyncio.to_thread(self._builder.build, generation, interval)
        else:
            request = self._builder.build(generation, interval)
        token_bytes = self._token_bytes[request.sampling.skip_special_tokens]
        assembler = DeltaAssembler(request, generation.request_id, token_bytes, interval)
        key = result_key(request) if self._config.backend.result_cache_tokens else None
        recording = None if key is None else Recording(key)
        entry = Entry(request.request_id, generation.request_id, assembler, Stream(asyncio.get_running_loop()), recording)
        if key is not None and self._replay(entry, key, request.arrival_time):
            return entry, request
        with self._lock:
            self._supervisor.check_alive()
            if self._table.add(entry, limit=self._max_requests()):
                self._supervisor.note_work()
            self._supervisor.send(Submit((request,)))
        return entry, request

    def _replay(self, entry: Entry, key: ResultKey, now: float) -> bool:
        """Answer from the results that are remembered, if this one is."""
        output = self._results.find(key)
        if output is None:
            return False
        delta = _assembled(entry, output._replace(cached_tokens=output.prompt_tokens, scheduled_time=now))
        assert delta is not None, "an output with a finish is never held back"
        entry.stream.push(delta)
        return True

    def _max_requests(self) -> int | None:
        queued = self._config.schedule.max_queued_requests
        return None if queued is None else self.capacity.max_running + queued

    async def _next(self, entry: Entry, request: Request) -> Delta:
        """The next delta. The worker ends a request at its deadline; here we only make sure when it is too busy to."""
        if request.deadline is None:
            return await entry.stream.next()
        try:
            async with asyncio.timeout_at(request.deadline + _DEADLINE_GRACE_SECONDS):
                return await entry.stream.next()
        except TimeoutError:
            if self._table.remove(entry.wire_id) is None:  # the terminal event is on its way
                return await entry.stream.next()
            self._supervisor.send(Abort((entry.wire_id,)))
            late = DeadlineExceeded(f"the request's timeout_s={request.sampling.timeout_s} ran out")
            return entry.assembler.end(Finish(FinishKind.ABORT, message=late.message, status=late.status, code=late.code or ""))

    def _abandon(self, entry: Entry) -> None:
        """Nobody listens any more: finished, closed or cancelled."""
        if self._table.remove(entry.wire_id) is not None:
            self._supervisor.send(Abort((entry.wire_id,)))

    async def _call(self, kind: Callable[[int], Flush | GetStats | LookAtCache | ExplainMiss]) -> Reply:
        call_id = next(self._call_ids)
        reply: Future[Reply] = Future()
        with self._lock:
            self._supervisor.check_alive()
            self._calls[call_id] = reply
            self._supervisor.send(kind(call_id))
        return await asyncio.wrap_future(reply)

    # What the supervisor tells (on its thread).

    @property
    def has_work(self) -> bool:
        return len(self._table) > 0

    def on_outputs(self, outputs: Sequence[RequestOutput]) -> None:
        delivery = Delivery()
        to_abort: list[str] = []
        for output in outputs:
            entry = self._table.get(output.request_id)
            if entry is None:
                continue
            if entry.recording is not None and (whole := entry.recording.add(output)) is not None:
                self._results.keep(entry.recording.key, whole)
            delta = _assembled(entry, output)
            if delta is None:
                continue
            if delta.finish is not None:
                if self._table.remove(entry.wire_id) is None:
                    continue
                if output.finish is None:
                    to_abort.append(entry.wire_id)
            delivery.add(entry.stream, delta)
        self._send(delivery, to_abort)

    def on_reply(self, reply: Reply) -> None:
        future = self._calls.pop(reply.call_id, None)
        if future is not None and not future.cancelled():
            future.set_result(reply)

    def on_death(self, error: WorkerDied) -> None:
        with self._lock:
            entries = self._table.remove_all()
            calls, self._calls = self._calls, {}
        finish = Finish(FinishKind.ERROR, message=error.message, status=error.status, code=error.code or "")
        delivery = Delivery()
        for entry in entries:
            delivery.add(entry.stream, entry.assembler.end(finish))
        self._send(delivery, [])
        for future in calls.values():
            if not future.cancelled():
                future.set_exception(error)

    def on_end(self, error: RametError) -> None:
        if self._on_end is not None and not self._supervisor.closing:
            self._on_end(error)

    def _send(self, delivery: Delivery, to_abort: list[str]) -> None:
        for request_id in delivery.send():
            wire_id = self._table.wire_id_of(request_id)
            if wire_id is not None and self._table.remove(wire_id) is not None:
                to_abort.append(wire_id)
        if to_abort:
            self._supervisor.send(Abort(tuple(to_abort)))


def _close_late(starting: asyncio.Future[AsyncEngine]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().close_now()


def _assembled(entry: Entry, output: RequestOutput) -> Delta | None:
    """A fault of ours in one request's text must not take the others down."""
    try:
        return entry.assembler.push(output)
    except RametError as error:
        finish = Finish(FinishKind.ERROR, message=error.message, status=error.status, code=error.code or error.kind)
    except Exception as error:
        _log.exception("Reading the output of request %s failed", entry.request_id)
        finish = Finish(FinishKind.ERROR, message=f"reading the output failed: {error}", status=500, code="internal_error")
    return Delta(request_id=entry.request_id, finish=finish)
