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
import time
from collections import deque
from collections.abc import Callable

from ramet.errors import InternalError, InvalidRequest, RametError
from ramet.grammar.matcher import CompiledGrammar, GrammarCompiler
from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.page_audit import check_idle
from ramet.runtime.config import ScheduleConfig
from ramet.runtime.plan import BatchPlan, Capacity, PlanRow, RowResult, StepResult, TokenMasks
from ramet.runtime.request import EngineStats, Finish, Request, RequestOutput
from ramet.runtime.scheduler import finish_rules
from ramet.runtime.scheduler.batch_report import BatchReport, Throughput
from ramet.runtime.scheduler.constraints import GrammarCache, fill_masks
from ramet.runtime.scheduler.request_state import Phase, RequestState
from ramet.runtime.scheduler.step_builder import StepBuilder
from ramet.runtime.scheduler.step_planner import SchedulerCounters, StepPlanner

_NOTHING = RowResult()


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
        self.planner = StepPlanner(capacity, options, cache, self.counters, clock, seed)
        self._states: dict[str, RequestState] = {}  # all that have not ended
        self._waiting_grammar: dict[str, RequestState] = {}
        self._flights: deque[tuple[BatchPlan, StepBuilder]] = deque()
        self._deadlines: list[tuple[float, int, str]] = []
        self._ended: list[RequestOutput] = []
        self._throughput = Throughput(clock)
        self._num_arrivals = 0
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
        builder = self.planner.fill()
        while not builder.rows and not self._flights and len(self.planner.running) > 1:
            self.planner.retract_one()  # all are prefilling and hold each other's pages
            builder = self.planner.fill()
        if not builder.rows:
            return None
        plan = builder.plan()
        self._flights.append((plan, builder))
        self.counters.steps += 1
        self.counters.prefill_tokens += builder.num_prefill_tokens
        self.planner.ratio.on_step()
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
            num_running=len(self.planner.running),
            num_waiting=self.planner.num_waiting,
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
            num_running=len(self.planner.running),
            num_waiting=self.planner.num_waiting + len(self._waiting_grammar),
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
        self.planner.ratio.reset()
        return True

    def close(self) -> None:
        """End the threads that compile grammars."""
        if self._grammars is not None:
            self._grammars.close()

    # ── arriving ──

    def _refusal(self, request: Request) -> Finish | None:
        limit = self._options.max_queued_requests
        if limit is not None and len(self.planner.waiting) + len(self._waiting_grammar) >= limit + self.planner.num_free_slots:
            return finish_rules.queue_full(limit)
        if request.grammar is not None and self._grammars is None:
            return finish_rules.no_grammars()
        return finish_rules.refusal(request, self.capacity, self._context_len)

    def _new_state(self, request: Request) -> RequestState:
        self._num_arrivals += 1
        max_outputs = min(request.sampling.max_new_tokens, self._context_len - len(request.prompt_ids))
        phase = Phase.WAITING if request.grammar is None else Phase.WAITING_GRAMMAR
        return RequestState(request, self._num_arrivals, max_outputs, phase)

    def _enqueue(self, state: RequestState) -> None:
        spec = state.request.grammar
        if spec is None or self._grammars is None:
            self.planner.enqueue(state, len(self.planner.waiting))
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
        self.planner.enqueue(state, len(self.planner.waiting))

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
                self.planner.share_chunk(state)
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
        self._waiting_grammar.pop(state.request_id, None)
        self.planner.drop(state)
        state.matcher = None
        del self._states[state.request_id]

    def _check_idle(self) -> None:
        if not self._is_checked:
            check_idle(self.cache)
            self._is_checked = True


def _output(state: RequestState, token_ids: tuple[int, ...], finish: Finish | None, result: RowResult = _NOTHING) -> RequestOutput:
    return RequestOutput(
        state.request.request_id,
        token_ids,
        result.logprobs[: len(token_ids)],
        result.prompt_logprobs,
        finish,
        state.prompt_len,
        state.cached_tokens,
        0,  # forced_tokens
        state.num_retractions,
        state.scheduled_time,
    )
