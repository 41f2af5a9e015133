"""Continuous batching over a prefix cache: who runs in the next step, on which pages, and what became of the last one.

    plan   = scheduler.plan()            # decode rows of all that run, prompt chunks in the rest of the token budget
    masks  = scheduler.masks(plan)       # after the plan before it was committed
    events = scheduler.commit(plan, result)

The overlapped loop calls `plan` for step n+1 before `commit` of step n: the decode rows of n+1 then stand on tokens not yet known
(`PENDING_TOKEN`), and a request that turns out to have ended at n has its row of n+1 dropped. Its pages are free from commit n on,
although step n+1 may still write to them: steps run in order on the device, and no plan before n+2 can give the pages away.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from ramet.errors import InternalError, InvalidRequest, RametError
from ramet.grammar.matcher import CompiledGrammar, GrammarCompiler
from ramet.runtime.cache.check import check_idle
from ramet.runtime.cache.lease import Cache, Lease
from ramet.runtime.config import ScheduleConfig
from ramet.runtime.plan import BatchPlan, Capacity, PlanRow, RowResult, StepResult, TokenMasks
from ramet.runtime.request import EngineStats, Finish, Request, RequestOutput
from ramet.runtime.scheduler import finish_rules
from ramet.runtime.scheduler.admission import NewTokenRatio, PrefillBudget
from ramet.runtime.scheduler.batch_report import BatchReport, Throughput
from ramet.runtime.scheduler.constraints import GrammarCache, fill_masks
from ramet.runtime.scheduler.policy import POLICIES, PolicyContext
from ramet.runtime.scheduler.request_state import Phase, RequestState
from ramet.runtime.scheduler.sharing import PrefixesInFlight
from ramet.runtime.scheduler.step_builder import StepBuilder

_RETRY_STEPS = 8
"""Steps between two looks at a queue whose head did not fit, as long as nobody leaves."""


@dataclass(slots=True)
class SchedulerCounters:
    """Cumulative."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0  # really computed, after retractions too
    generation_tokens: int = 0
    retractions: int = 0
    steps: int = 0


class Scheduler:
    """`cache` must hold exactly `capacity.num_pages` pages. `options` has its autos resolved. Not thread-safe."""

    def __init__(
        self,
        capacity: Capacity,
        context_len: int,
        vocab_size: int,
        options: ScheduleConfig,
        cache: Cache,
        compiler: GrammarCompiler | None = None,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        self.capacity = capacity
        self.cache = cache
        self.counters = SchedulerCounters()
        self._context_len = context_len
        self._vocab_size = vocab_size
        self._options = options
        self._clock = clock
        self._grammars = GrammarCache(compiler) if compiler is not None else None
        self._max_running = min(capacity.max_running, options.max_running_requests or capacity.max_running)
        self._free_slots = list(range(self._max_running - 1, -1, -1))
        self._order = POLICIES[options.schedule_policy]
        self._context = PolicyContext(cache, random.Random(seed), max_overtakes=4 * self._max_running)
        self._states: dict[str, RequestState] = {}  # all that have not ended; the others are parts of it, in order of arrival
        self._waiting_grammar: dict[str, RequestState] = {}
        self._waiting: dict[str, RequestState] = {}
        self._retracted: dict[str, RequestState] = {}
        self._running: dict[str, RequestState] = {}
        self._prefixes = PrefixesInFlight(capacity.page_size)
        self._ratio = NewTokenRatio()
        self._flights: deque[tuple[BatchPlan, StepBuilder]] = deque()
        self._deadlines: list[tuple[float, int, str]] = []
        self._ended: list[RequestOutput] = []
        self._throughput = Throughput(clock)
        self._num_arrivals = 0
        self._retry_step = 0
        self._is_checked = True

    # ── requests come and go ──

    def add(self, request: Request) -> None:
        """Queue `request`. One that can never run is refused: its terminal event comes with the next `drain`.
        Raises `InvalidRequest` when a request of this id is still here."""
        if request.request_id in self._states:
            raise InvalidRequest(f"a request with the id '{request.request_id}' is running already", param="rid")
        finish = self._refusal(request)
        if finish is not None:
            self._ended.append(RequestOutput(request.request_id, finish=finish, prompt_tokens=len(request.prompt_ids)))
            return
        state = self._new_state(request)
        self._states[request.request_id] = state
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, state.arrival, request.request_id))
        self._enqueue(state)

    def abort(self, request_id: str) -> bool:
        """End a request now: its pages are free for the next plan. False when there is no such request."""
        state = self._states.get(request_id)
        if state is None:
            return False
        self._end(state, finish_rules.aborted())
        return True

    def abort_all(self) -> int:
        ids = list(self._states)
        return sum(self.abort(request_id) for request_id in ids)

    def drain(self) -> list[RequestOutput]:
        """Terminal events born outside `commit`: aborts, deadlines, refusals, grammar failures."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def has_work(self) -> bool:
        """False when neither `plan` nor `commit` nor `drain` has anything to do. While only grammars are being compiled, `plan`
        returns None: poll it every few milliseconds."""
        return bool(self._states or self._ended or self._flights)

    # ── a step ──

    def plan(self) -> BatchPlan | None:
        """The next step; None when nothing can run before something else happens (a commit, a grammar, a request)."""
        assert len(self._flights) <= 1, "at most one step may be in flight while the next one is planned"
        self._end_expired()
        self._take_grammars()
        if not self._states:
            self._check_idle()
            return None
        self._is_checked = False
        builder = self._fill_step()
        while not builder.rows and not self._flights and len(self._running) > 1:
            self._retract_one()  # all are prefilling and hold each other's pages
            builder = self._fill_step()
        if not builder.rows:
            return None
        plan = builder.plan()
        self._flights.append((plan, builder))
        self.counters.steps += 1
        self.counters.prefill_tokens += builder.num_prefill_tokens
        self._ratio.on_step()
        return plan

    def masks(self, plan: BatchPlan) -> TokenMasks | None:
        """Allowed tokens of the constrained rows of `plan`; None when there are none. To be called after the commit of the plan before."""
        if plan.num_masks == 0:
            return None
        assert self._flights and self._flights[0][0] is plan, "masks are filled when the step before has been committed"
        rows = zip(plan.rows, self._flights[0][1].states, strict=True)
        matchers = (state.matcher for row, (state, _) in rows if row.mask_row is not None)
        return fill_masks(matchers, plan.num_masks, self._vocab_size)

    def commit(self, plan: BatchPlan, result: StepResult) -> list[RequestOutput]:
        """Take the results of the oldest step in flight."""
        planned, builder = self._flights.popleft()
        assert planned is plan, "steps are committed in the order in which they were planned"
        outputs = []
        for row, row_result, (state, epoch) in zip(plan.rows, result.rows, builder.states, strict=True):
            output = self._commit_row(state, epoch, row, row_result)
            if output is not None:
                outputs.append(output)
        return outputs

    # ── the outside view ──

    def stats(self) -> EngineStats:
        counters = self.counters
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting) + len(self._retracted),
            num_waiting_grammar=len(self._waiting_grammar),
            total_tokens=self.capacity.num_tokens,
            used_tokens=self.cache.used_tokens,
            evictable_tokens=self.cache.evictable_tokens,
            available_tokens=self.cache.available_tokens,
            prompt_tokens_total=counters.prompt_tokens,
            cached_tokens_total=counters.cached_tokens,
            generation_tokens_total=counters.generation_tokens,
            evicted_tokens_total=self.cache.counters.evicted,
            num_retractions_total=counters.retractions,
            num_steps_total=counters.steps,
            gen_throughput=self._throughput.last,
        )

    def batch_report(self, plan: BatchPlan, decode_interval: int = 40) -> BatchReport | None:
        """For the log, right after `plan`: every step that prefills, and every `decode_interval`-th step that only decodes."""
        builder = self._flights[-1][1]
        if not builder.num_prefill_tokens and plan.step % decode_interval:
            return None
        throughput = self._throughput.last if builder.num_prefill_tokens else self._throughput.read()
        return BatchReport(
            num_running=len(self._running),
            num_waiting=len(self._waiting) + len(self._retracted) + len(self._waiting_grammar),
            used_tokens=self.cache.used_tokens,
            total_tokens=self.capacity.num_tokens,
            gen_throughput=throughput,
            num_new_requests=builder.num_new_requests,
            num_new_tokens=builder.num_prefill_tokens,
            num_cached_tokens=builder.num_cached_tokens,
        )

    def flush_cache(self) -> bool:
        """Empty the prefix cache; False, with nothing done, while requests run or wait."""
        if self._states:
            return False
        self.cache.flush()
        self._ratio.reset()
        return True

    def close(self) -> None:
        """End the threads that compile grammars."""
        if self._grammars is not None:
            self._grammars.close()

    # ── arriving ──

    def _refusal(self, request: Request) -> Finish | None:
        limit = self._options.max_queued_requests
        if limit is not None and len(self._waiting) + len(self._waiting_grammar) >= limit + len(self._free_slots):
            return finish_rules.queue_full(limit)
        if request.grammar is not None and self._grammars is None:
            return finish_rules.no_grammars()
        return finish_rules.refusal(request, self.capacity, self._context_len)

    def _new_state(self, request: Request) -> RequestState:
        self._num_arrivals += 1
        max_outputs = min(request.sampling.max_new_tokens, self._context_len - len(request.prompt_ids))
        phase = Phase.WAITING if request.grammar is None else Phase.WAITING_GRAMMAR
        state = RequestState(request, self._num_arrivals, max_outputs, phase)
        state.queue_ahead = len(self._waiting) + len(self._waiting_grammar)
        state.admissions_before = self._context.num_admissions
        return state

    def _enqueue(self, state: RequestState) -> None:
        spec = state.request.grammar
        if spec is None or self._grammars is None:
            self._waiting[state.request_id] = state
            return
        self._waiting_grammar[state.request_id] = state
        compiled = self._grammars.get(spec)
        if compiled is None:
            self._grammars.request(spec, state.request_id)
        else:
            self._grammar_is_ready(state, compiled)

    def _take_grammars(self) -> None:
        if self._grammars is None or not self._waiting_grammar:
            return
        for request_id, spec, compiled in self._grammars.ready():
            state = self._waiting_grammar.get(request_id)
            if state is not None and state.request.grammar == spec:  # else it was aborted meanwhile
                self._grammar_is_ready(state, compiled)

    def _grammar_is_ready(self, state: RequestState, compiled: CompiledGrammar | RametError) -> None:
        if isinstance(compiled, RametError):
            self._end(state, finish_rules.failed(compiled))
            return
        state.matcher = compiled.matcher()
        del self._waiting_grammar[state.request_id]
        state.move(Phase.WAITING)
        self._waiting[state.request_id] = state

    # ── filling a step ──

    def _fill_step(self) -> StepBuilder:
        builder = StepBuilder(self.counters.steps)
        self._add_decodes(builder)
        chunk = self._options.chunked_prefill_size
        budget = PrefillBudget(self._options.max_prefill_tokens, chunk if chunk is not None and chunk > 0 else None)
        self._add_chunks(builder, budget)
        self._admit(builder, budget)
        return builder

    def _add_decodes(self, builder: StepBuilder) -> None:
        """One row for every request that decodes; when pages run out, some requests give up theirs."""
        ready = self._decoding()
        missing = [self._missing_pages(state, state.num_planned + 1) for state in ready]
        pages = self.cache.allocate(sum(missing))
        while pages is None:
            self._retract_one()
            ready = self._decoding()
            missing = [self._missing_pages(state, state.num_planned + 1) for state in ready]
            pages = self.cache.allocate(sum(missing))
        for state, count in zip(ready, missing, strict=True):
            if count and state.lease is not None:
                state.lease.pages.extend(pages[len(pages) - count :])
                del pages[len(pages) - count :]
            builder.decode(state)

    def _decoding(self) -> list[RequestState]:
        return [state for state in self._running.values() if state.phase is Phase.DECODING and state.may_sample_again]

    def _add_chunks(self, builder: StepBuilder, budget: PrefillBudget) -> None:
        for state in self._running.values():
            if budget.is_spent:
                return
            if state.phase is Phase.PREFILLING:
                self._add_chunk(state, builder, budget)

    def _add_chunk(self, state: RequestState, builder: StepBuilder, budget: PrefillBudget) -> None:
        """Prefill as much of `state` as budget and pages allow."""
        assert state.lease is not None
        granted = self._granted(state.lease, state.num_planned, state.prefill_stop, budget)
        if not granted:
            return
        pages = self.cache.allocate(self._missing_pages(state, state.num_planned + granted))
        assert pages is not None, "room was counted before"
        state.lease.pages.extend(pages)
        budget.spend(granted)
        builder.prefill(state, granted)

    def _granted(self, lease: Lease, start: int, stop: int, budget: PrefillBudget) -> int:
        room = (len(lease.pages) + self.cache.available_pages) * self.capacity.page_size - start
        return budget.grant(stop - start, room)

    def _missing_pages(self, state: RequestState, num_tokens: int) -> int:
        """Pages that the lease lacks to hold `num_tokens`."""
        assert state.lease is not None
        return max(0, -(-num_tokens // self.capacity.page_size) - len(state.lease.pages))

    # ── admission and retraction ──

    def _admit(self, builder: StepBuilder, budget: PrefillBudget) -> None:
        """Let waiting requests in: the retracted first, then in the order of the policy, until slots, budget or pages are used up."""
        if not (self._waiting or self._retracted) or not self._free_slots or budget.is_spent:
            return
        if self._running and self.counters.steps < self._retry_step:
            return
        page_size = self.capacity.page_size
        reserved = sum(self._ratio.reserve(state, state.num_planned, page_size) for state in self._running.values())
        for state in chain(list(self._retracted.values()), list(self._order(self._waiting.values(), self._context))):
            if not self._free_slots or budget.is_spent:
                return
            if self._should_wait(state):
                continue
            if not self._try_admit(state, builder, budget, reserved):
                return
            reserved += self._ratio.reserve(state, state.num_planned, page_size)

    def _should_wait(self, state: RequestState) -> bool:
        """A retracted request whose last row is still in flight, or one whose prefix another request is computing just now."""
        if state.rows_in_flight or not self._prefixes:
            return state.rows_in_flight > 0
        return self._prefixes.is_worth_waiting(state.request.cache_namespace, state.reusable, self._context.cached_len(state))

    def _try_admit(self, state: RequestState, builder: StepBuilder, budget: PrefillBudget, reserved: int) -> bool:
        """Admit `state` if its prompt, and its likely share of output, fit beside the `reserved` pages; alone it always fits."""
        lease = self.cache.acquire(state.request.cache_namespace, state.reusable)
        needed = self._ratio.reserve(state, lease.num_shared, self.capacity.page_size)
        if self._running and needed > self.cache.available_pages - reserved:
            self._retry_step = self.counters.steps + _RETRY_STEPS
            self.cache.release(lease)
            return False
        if not self._granted(lease, lease.num_shared, state.prefill_stop, budget):
            self.cache.release(lease)
            return False
        self._start(state, lease, builder)
        self._add_chunk(state, builder, budget)
        return True

    def _start(self, state: RequestState, lease: Lease, builder: StepBuilder) -> None:
        (self._retracted if state.phase is Phase.RETRACTED else self._waiting).pop(state.request_id)
        is_first = state.phase is Phase.WAITING
        state.start(lease, self._free_slots.pop())
        self._running[state.request_id] = state
        if self.cache.reuses:
            self._prefixes.add(state)
        builder.num_new_requests += 1
        builder.num_cached_tokens += lease.num_shared
        if is_first:
            state.scheduled_time = self._clock()
            state.cached_tokens = lease.num_shared
            self._context.num_admissions += 1
            self.counters.prompt_tokens += state.prompt_len
            self.counters.cached_tokens += lease.num_shared

    def _retract_one(self) -> None:
        """Take the pages of the request that loses least, computed tokens counted; it comes back first and computes them again, or
        finds them in the cache. The last one running stays: alone it fits, or it would have been refused."""
        running = self._running.values()
        if len(running) < 2:
            raise InternalError("a request that runs alone lacks KV pages; the page accounting must be wrong")
        victim = min(running, key=lambda state: (state.num_planned - state.num_matched, -state.arrival))
        self._ratio.on_retraction(running)
        self._leave_slot(victim, Phase.RETRACTED)
        self._retracted[victim.request_id] = victim
        self._retry_step = self.counters.steps + _RETRY_STEPS
        self.counters.retractions += 1

    # ── taking results ──

    def _commit_row(self, state: RequestState, epoch: int, row: PlanRow, result: RowResult) -> RequestOutput | None:
        state.rows_in_flight -= 1
        state.pending_samples -= row.samples
        if state.phase is Phase.FINISHED:
            return None
        taken, finish = self._take_tokens(state, row, result)
        if epoch == state.epoch:
            state.num_computed = min(row.end, state.prompt_len + state.num_outputs)
            if finish is None and row.end <= state.prefill_end:
                self._share_chunk(state)
        else:
            state.extend_prefill()
        if finish is not None:
            self._close(state)
        if not (taken or result.prompt_logprobs or finish):
            return None
        return _output(state, result.token_ids[:taken], finish, result)

    def _take_tokens(self, state: RequestState, row: PlanRow, result: RowResult) -> tuple[int, Finish | None]:
        """Append what was sampled, up to the token that ends the request: how many were taken, and the finish."""
        if row.samples and not result.token_ids:
            raise InternalError(f"the executor sampled nothing for request {state.request_id} in a step that was to sample")
        if not row.samples:
            is_whole = state.max_outputs == 0 and row.end == state.prefill_end
            return 0, finish_rules.LENGTH if is_whole else None
        finish, taken = None, 0
        while finish is None and taken < len(result.token_ids):
            finish = finish_rules.accept_token(state, result.token_ids[taken])
            taken += 1
        self.counters.generation_tokens += taken
        self._throughput.add(taken)
        return taken, finish

    def _share_chunk(self, state: RequestState) -> None:
        """Cache a chunk as soon as it is computed, so that requests with the same prefix can start."""
        assert state.lease is not None
        end = state.num_computed - (state.prompt_logprobs_next is not None)  # the next chunk will compute that token again
        replaced_from = self.cache.insert(state.lease, state.tokens[:end])
        if replaced_from is not None:
            state.num_pages_sent = min(state.num_pages_sent, replaced_from)
        if state.num_computed == state.prefill_end:
            self._prefixes.remove(state)

    # ── ending ──

    def _end_expired(self) -> None:
        now = self._clock() if self._deadlines else 0.0
        while self._deadlines and self._deadlines[0][0] <= now:
            _, arrival, request_id = heapq.heappop(self._deadlines)
            state = self._states.get(request_id)
            if state is not None and state.arrival == arrival:
                self._end(state, finish_rules.out_of_time())

    def _end(self, state: RequestState, finish: Finish) -> None:
        """End a request outside `commit`."""
        self._close(state)
        self._ended.append(_output(state, (), finish))

    def _close(self, state: RequestState) -> None:
        if state.is_running:
            self._leave_slot(state, Phase.FINISHED)
            self._retry_step = 0
        else:
            for queue in (self._waiting, self._waiting_grammar, self._retracted):
                queue.pop(state.request_id, None)
            state.move(Phase.FINISHED)
        state.matcher = None
        del self._states[state.request_id]

    def _leave_slot(self, state: RequestState, phase: Phase) -> None:
        """Give slot and pages back; what is computed stays in the cache as long as there is room."""
        assert state.lease is not None
        self._prefixes.remove(state)
        self.cache.insert(state.lease, state.computed_tokens())
        self.cache.release(state.lease)
        self._free_slots.append(state.slot)
        del self._running[state.request_id]
        state.stop_running(phase)

    def _check_idle(self) -> None:
        if not self._is_checked:
            check_idle(self.cache)
            self._is_checked = True


def _output(state: RequestState, token_ids: tuple[int, ...], finish: Finish | None, result: RowResult | None = None) -> RequestOutput:
    return RequestOutput(
        request_id=state.request.request_id,
        token_ids=token_ids,
        logprobs=result.logprobs[: len(token_ids)] if result is not None else (),
        prompt_logprobs=result.prompt_logprobs if result is not None else (),
        finish=finish,
        prompt_tokens=state.prompt_len,
        cached_tokens=state.cached_tokens,
        num_retractions=state.num_retractions,
        scheduled_time=state.scheduled_time,
    )
