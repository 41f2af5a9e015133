"""Runs a scheduler over the fake executor, serially or overlapped, and audits the pages after every call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ramet.grammar.matcher import GrammarCompiler, MaskFiller
from ramet.runtime.cache.disk_blocks import DiskBlocks
from ramet.runtime.cache.no_cache import NoCache
from ramet.runtime.cache.page_audit import audit
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.cache.second_tier import SecondTier
from ramet.runtime.config import MemoryConfig, ScheduleConfig
from ramet.runtime.executor.fake import FakeExecutor, FakeHostMemory, FakeModel, expected_output
from ramet.runtime.plan import BatchPlan, Capacity, PlanRow, RowResult, StepResult
from ramet.runtime.request import Finish, Request, RequestOutput, SamplingParams, TokenLogprob
from ramet.runtime.scheduler.guess_policy import GuessPolicy
from ramet.runtime.scheduler.guessing import Guesser
from ramet.runtime.scheduler.scheduler import Scheduler
from tests.waiting import PATIENCE


def request(request_id: str, prompt: Sequence[int], new: int = 4, **fields: Any) -> Request:
    sampling = fields.pop("sampling", SamplingParams(max_new_tokens=new, temperature=0.0))
    return Request(request_id=request_id, prompt_ids=tuple(prompt), sampling=sampling, seed=fields.pop("seed", 0), **fields)


@dataclass
class Tier:
    """What a `Drive` may have beside its pool; `directory` outlives it."""

    num_blocks: int = 8
    block_tokens: int = 16
    directory: Path | None = None
    disk_bytes: int = 1 << 20
    saves_early: bool = False
    fingerprint: str = "fake"
    is_beside_pool: bool = False
    _memory: FakeHostMemory | None = field(default=None, init=False)

    def memory(self, page_size: int) -> FakeHostMemory:
        if self._memory is None:
            size = max(self.block_tokens, page_size)
            self._memory = FakeHostMemory(
                self.num_blocks, size, page_size, fingerprint=self.fingerprint, is_beside_pool=self.is_beside_pool
            )
        return self._memory

    def make(self, page_size: int, clock: Callable[[], float]) -> SecondTier:
        disk = None if self.directory is None else DiskBlocks(self.directory, self.fingerprint, self.disk_bytes)
        return SecondTier(self.memory(page_size), page_size, clock, disk, saves_early=self.saves_early)


class Drive:
    """`now` is the scheduler's clock. `late`: whether the overlapped loop commits a step before it plans the next one (None: when the
    scheduler wants it). What came is in `tokens`, `ends` and `rows`."""

    def __init__(
        self,
        *,
        num_pages: int = 256,
        page_size: int = 1,
        max_running: int = 8,
        cache: bool = True,
        overlap: bool = False,
        model: FakeModel | None = None,
        compiler: GrammarCompiler | None = None,
        eviction: str = "lru",
        late: bool | None = None,
        num_guesses: int = 0,
        guesser: Guesser | None = None,
        guess_policy: GuessPolicy | None = None,
        memory: MemoryConfig | None = None,
        tier: Tier | None = None,
        mask_filler: MaskFiller | None = None,
        **options: Any,
    ) -> None:
        self.model = model or FakeModel(vocab_size=64)
        self.compiler = compiler
        capacity = Capacity(num_pages, page_size, max_running)
        self.now = 0.0
        self.tier = tier.make(page_size, lambda: self.now) if tier is not None else None
        self.cache = PrefixCache(num_pages, page_size, eviction, self.tier) if cache else NoCache(num_pages, page_size)
        options.setdefault("chunked_prefill_size", 32)
        self.scheduler = Scheduler(
            capacity,
            self.model.context_len,
            self.model.vocab_size,
            ScheduleConfig(**options),
            self.cache,
            compiler,
            lambda: self.now,
            num_guesses=num_guesses,
            guesser=guesser,
            guess_policy=guess_policy,
            memory=memory,
            mask_filler=mask_filler,
        )
        self.executor = FakeExecutor(capacity, self.model, host_memory=None if tier is None else tier.memory(page_size))
        self.overlap = overlap
        self.late = late
        self.requests: dict[str, Request] = {}
        self.tokens: dict[str, list[int]] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprob]] = {}
        self.logprobs: dict[str, list[TokenLogprob]] = {}
        self.ends: dict[str, RequestOutput] = {}
        self.rows: list[PlanRow] = []
        self.plans: list[BatchPlan] = []
        self._flight: tuple[BatchPlan, Any] | None = None

    def add(self, *requests: Request) -> None:
        for one in requests:
            one = replace(one, stop_token_ids=one.stop_token_ids or self.model.eos_token_ids)
            self.requests[one.request_id] = one
            for kept in (self.tokens, self.prompt_logprobs, self.logprobs):
                kept[one.request_id] = []
            self.scheduler.add(one)

    def step(self) -> BatchPlan | None:
        """One turn of the loop: plan, launch, commit (of the step before, when overlapped)."""
        if self.scheduler.wants_results_first if self.late is None else self.late:
            self.finish_flight()
        plan = self.scheduler.plan()
        self._audit()
        if plan is not None:
            self.plans.append(plan)
            self.rows += plan.rows
            self.executor.launch(plan)
        if self.overlap:
            self.finish_flight()
        if plan is not None:
            self._flight = (plan, self.executor.sample(plan, self.scheduler.masks(plan)))
            if not self.overlap:
                self.finish_flight()
        self._take(self.scheduler.drain())
        return plan

    def finish_flight(self) -> None:
        if self._flight is not None:
            plan, pending = self._flight
            self._flight = None
            self._take(self.scheduler.commit(plan, pending.result()))
            self._audit()

    def settle_grammars(self) -> None:
        """Wait for the compiler's threads, so that what follows is the same in every run."""
        deadline = time.monotonic() + PATIENCE
        while self.scheduler.stats().num_waiting_grammar:
            self.scheduler._take_grammars()
            assert time.monotonic() < deadline

    def run(self, max_steps: int = 3000) -> None:
        self.run_on(max_steps)
        self.check_idle()

    def run_on(self, max_steps: int = 3000) -> None:
        """As `run`, but keeps what is cached; threads of the disk and the grammars are given time."""
        steps, patience = 0, time.monotonic() + PATIENCE
        while self.scheduler.has_work:
            if self.step() is None:
                assert time.monotonic() < patience, f"no end: {self.scheduler.stats()}"
                time.sleep(0.0005)
            else:
                steps += 1
            assert steps < max_steps, f"no end after {max_steps} steps: {self.scheduler.stats()}"

    def fail_step(self) -> None:
        """Plan a step, if there is one, that does not run, and end its requests, as the worker does."""
        plan = self.scheduler.plan()
        if plan is None:
            return
        for row in plan.rows:
            self.scheduler.abort(row.request_id)
        self._take(self.scheduler.commit(plan, StepResult(tuple(RowResult() for _ in plan.rows), ran=False)))
        self._take(self.scheduler.drain())
        self._audit()

    def check_idle(self) -> None:
        assert set(self.ends) == set(self.requests)
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.used_tokens) == (0, 0, 0)
        assert stats.evictable_tokens + stats.available_tokens == stats.total_tokens
        assert self.scheduler.flush_cache()
        assert self.cache.available_tokens == stats.total_tokens

    def close(self) -> None:
        """As a worker ends: files that are being written are waited for."""
        self.scheduler.close()

    def finish(self, request_id: str) -> Finish:
        finish = self.ends[request_id].finish
        assert finish is not None
        return finish

    def expected(self, request_id: str) -> tuple[int, ...]:
        one = self.requests[request_id]
        matcher = None
        if one.grammar is not None and self.compiler is not None:
            matcher = self.compiler.compile(one.grammar.kind, one.grammar.source).matcher()
        return expected_output(self.model, one.prompt_ids, one.sampling, seed=one.seed, stop_token_ids=one.stop_token_ids, matcher=matcher)

    def assert_outputs(self) -> None:
        for request_id in self.requests:
            assert tuple(self.tokens[request_id]) == self.expected(request_id), request_id

    @property
    def prefill_tokens(self) -> int:
        return self.scheduler.counters.prefill_tokens

    def _take(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            assert output.request_id not in self.ends, f"news of {output.request_id} after its end"
            self.tokens[output.request_id] += output.token_ids
            self.prompt_logprobs[output.request_id] += output.prompt_logprobs
            self.logprobs[output.request_id] += output.logprobs
            if output.finish is not None:
                self.ends[output.request_id] = output

    def _audit(self) -> None:
        assert audit(self.cache) == []
