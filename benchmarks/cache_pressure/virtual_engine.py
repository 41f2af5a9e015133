"""An engine in virtual time: the real scheduler, cache and program backend over a device that only answers, and a clock that jumps over
what device and host would have taken. Seconds are those of the cost model, so results are exact and the same on every machine."""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ramet.errors import InternalError
from ramet.program.backend import ChatFormat
from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.second_tier import SecondTier
from ramet.runtime.config import MemoryConfig, ScheduleConfig
from ramet.runtime.host_memory import BLOCK_TOKENS
from ramet.runtime.plan import BatchPlan, Capacity, PlanRow, RowResult, StepResult
from ramet.runtime.request import Delta, EngineStats, Finish, Generation, KvHint, Request, RequestOutput
from ramet.runtime.scheduler.scheduler import Scheduler

T = TypeVar("T")
VOCAB = 256
CONTEXT = 1 << 14


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a step. The defaults are an 8B model on one H200 (41k prompt tokens/s, 8 ms for a decode step; 128 KiB of KV per token,
    which go to host memory or come from there at 40 GB/s)."""

    step: float = 8e-3
    prefill_token: float = 24e-6
    decode_row: float = 30e-6
    moved_token: float = 3.3e-6

    def seconds(self, plan: BatchPlan) -> float:
        tokens = [len(row.token_ids) for row in plan.rows]
        prefill = sum(count for count in tokens if count > 1)
        moved = sum(len(move.pages) for move in plan.moves)
        return self.step * bool(tokens) + self.prefill_token * prefill + self.decode_row * tokens.count(1) + self.moved_token * moved


@dataclass(frozen=True, slots=True)
class VirtualMemory:
    """What `SecondTier` needs of a `HostMemory`: there are no bytes."""

    num_blocks: int
    bytes_per_second: float
    block_pages: int = BLOCK_TOKENS
    block_bytes: int = BLOCK_TOKENS << 17
    is_beside_pool: bool = False
    fingerprint: str = "virtual"

    def view(self, block: int) -> memoryview:
        raise InternalError("virtual memory has no bytes")


def second_tier(num_tokens: int, costs: CostModel) -> SecondTier:
    memory = VirtualMemory(num_tokens // BLOCK_TOKENS, (1 << 17) / costs.moved_token)
    return SecondTier(memory, 1, asyncio.get_running_loop().time)


class Latin:
    """Token i is character i: every sequence of tokens is a text, and the same text again gives the same tokens."""

    vocab_size = VOCAB
    eos_token_ids = (0,)
    special_ids: frozenset[int] = frozenset()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode("latin-1"))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode("latin-1")

    def token_bytes(self) -> tuple[bytes, ...]:
        return tuple(bytes([token]) for token in range(VOCAB))


class Turns:
    def chat_format(self) -> ChatFormat:
        return ChatFormat({role: (f"<{role}>", "</>") for role in ("system", "user", "assistant")})


class VirtualEngine:
    """What `EngineBackend` needs of a `GenerationEngine`."""

    tokenizer = Latin()
    chat_template = Turns()

    def __init__(self, cache: Cache, num_pages: int, costs: CostModel, schedule: ScheduleConfig, memory: MemoryConfig) -> None:
        self._loop = asyncio.get_running_loop()
        capacity = Capacity(num_pages, 1, schedule.max_running_requests or 32)
        self.scheduler = Scheduler(capacity, CONTEXT, VOCAB, schedule, cache, clock=self._loop.time, memory=memory)
        self._device = _Device()
        self._costs = costs
        self._waiting: dict[str, tuple[asyncio.Future[RequestOutput], list[int]]] = {}
        self._serial = itertools.count()
        self._wake = asyncio.Event()
        self.peak_needed = 0  # tokens that running and paused programs need at once
        self.prompts: list[tuple[float, bytes]] = []  # as they came
        self.on_prompt: Callable[[bytes], None] | None = None
        self._steps = asyncio.ensure_future(self._run())

    async def complete(self, generation: Generation) -> Delta:
        prompt = generation.input_ids or tuple(self.tokenizer.encode(generation.text or ""))
        request = Request(
            request_id=f"{generation.request_id}#{next(self._serial)}",
            prompt_ids=prompt,
            sampling=generation.sampling,
            seed=1,
            group=generation.group,
            path=generation.path,
            length_bound=generation.length_bound,
            logprobs=generation.logprobs,
        )
        done: asyncio.Future[RequestOutput] = self._loop.create_future()
        tokens: list[int] = []
        self._waiting[request.request_id] = (done, tokens)
        self.prompts.append((self._loop.time(), bytes(prompt)))
        self.scheduler.add(request)
        self._wake.set()
        last = await done
        return Delta(
            request_id=generation.request_id,
            text=self.tokenizer.decode(tokens),
            token_ids=tuple(tokens),
            finish=last.finish,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=len(tokens),
            cached_tokens=last.cached_tokens,
        )

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        yield await self.complete(generation)

    def hint_kv(self, hint: KvHint) -> None:
        self.scheduler.hint(hint)

    async def stats(self) -> EngineStats:
        return self.scheduler.stats()

    async def close(self) -> None:
        self._steps.cancel()
        self.scheduler.close()

    async def _run(self) -> None:
        while True:
            plan = self.scheduler.plan()
            if plan is None:
                self._deliver(self.scheduler.drain())
                self._wake.clear()
                await self._wake.wait()
                continue
            result = self._device.run(plan)
            await asyncio.sleep(self._costs.seconds(plan))
            self._deliver([*self.scheduler.commit(plan, result), *self.scheduler.drain()])
            stats = self.scheduler.stats()
            self.peak_needed = max(self.peak_needed, stats.used_tokens + stats.pinned_tokens)

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            done, tokens = self._waiting[output.request_id]
            tokens += output.token_ids
            if output.finish is not None:
                _require_success(output.finish)
                del self._waiting[output.request_id]
                done.set_result(output)


class _Device:
    """Says letters that depend on the prompt and the position alone. What pages hold is the business of the scheduler's tests."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}  # slot → (hash, length)

    def run(self, plan: BatchPlan) -> StepResult:
        return StepResult(tuple(self._row(row) for row in plan.rows))

    def _row(self, row: PlanRow) -> RowResult:
        if row.reset is not None:
            self._prompts[row.slot] = (hash(row.reset.prompt_ids), len(row.reset.prompt_ids))
        if not row.samples:
            return RowResult()
        prompt, length = self._prompts[row.slot]
        return RowResult((ord("a") + hash((prompt, row.end - length)) % 26,))


def _require_success(finish: Finish) -> None:
    if finish.status != 200:
        raise RuntimeError(finish.message)


class _JumpingSelector(selectors.DefaultSelector):
    """Where a loop would wait, time has passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on a loop whose clock starts at 0 and never waits."""
    selector = _JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    loop._clock_resolution = 1e-9  # type: ignore[attr-defined]
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
