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
from dataclasses import replace

from ramet.errors import InvalidRequest, RametError
from ramet.grammar.matcher import CompiledGrammar, GrammarCompiler, MaskFiller, SerialMasks
from ramet.runtime.cache.lease import Cache
from ramet.runtime.cache.page_audit import check_idle
from ramet.runtime.cache.tree_view import largest_nodes
from ramet.runtime.cache_view import CacheView, Lookup, TierView
from ramet.runtime.config import MemoryConfig, ScheduleConfig
from ramet.runtime.plan import BatchPlan, Capacity, PlanRow, RowResult, StepResult, TokenMasks
from ramet.runtime.request import EngineStats, Finish, FinishKind, KvHint, Request, RequestOutput
from ramet.runtime.scheduler import finish_rules
from ramet.runtime.scheduler.batch_report import BatchReport, Throughput
from ramet.runtime.scheduler.cache_history import CacheHistory
from ramet.runtime.scheduler.constraints import GrammarCache, fill_masks
from ramet.runtime.scheduler.contained_matcher import ContainedMatcher
from ramet.runtime.scheduler.forced_runs import ForcedRuns, allow_only
from ramet.runtime.scheduler.guess_policy import GuessPolicy
from ramet.runtime.scheduler.guessing import Guesser, fill_masks_of_guesses, is_right, may_guess
from ramet.runtime.scheduler.jump_forward import JumpRate, append_forced
from ramet.runtime.scheduler.kv_lifetimes import KvLifetimes
from ramet.runtime.scheduler.request_state import Phase, RequestState
from ramet.runtime.scheduler.row_results import news, output, take_tokens
from ramet.runtime.scheduler.step_builder import StepBuilder
from ramet.runtime.scheduler.step_planner import SchedulerCounters, StepPlanner


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
        num_guesses: int = 0,
        memory: MemoryConfig | None = None,
        guesser: Guesser | None = None,
        guess_policy: GuessPolicy | None = None,
        mask_filler: MaskFiller | None = None,
    ) -> None:
        """`num_guesses`: tokens guessed per request and step; by `guesser`, by default from what the request said before; `guess_policy`:
        when, by default always. `mask_filler`: None, one row after the other."""
        self.capacity = capacity
        self.cache = cache
        self._tier = cache.tier
        self.counters = SchedulerCounters()
        self._context_len = context_len
        self._vocab_size = vocab_size
        self._options = options
        self._clock = clock
        self._grammars = GrammarCache(compiler, vocab_size) if compiler is not None else None
        self._mask_filler = mask_filler or SerialMasks()
        memory = memory or MemoryConfig()
        self._lifetimes = KvLifetimes(cache, clock, memory.kv_pin_seconds, memory.kv_pin_share, capacity.num_tokens)
        self._history = CacheHistory(capacity.page_size, capacity.num_tokens, clock)
        self.planner = StepPlanner(
            capacity, options, cache, self.counters, clock, seed, self._lifetimes, self._history, num_guesses, guesser, guess_policy
        )
        self._states: dict[str, RequestState] = {}  # all that have not ended
        self._waiting_grammar: dict[str, RequestState] = {}
        self._flights: deque[tuple[BatchPlan, StepBuilder]] = deque()
        self._deadlines: list[tuple[float, int, str]] = []
        self._ended: list[RequestOutput] = []
        self._throughput = Throughput(clock)
        self._may_jump = not options.disable_jump_forward
        self._jumps = JumpRate()
        self._guesses = num_guesses > 0
        self._num_arrivals = 0
        self._committed_at = 0.0
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

    def hint(self, hint: KvHint) -> None:
        """Take what a program run says of its KV."""
        self._lifetimes.hint(hint)

    def drain(self) -> list[RequestOutput]:
        """Terminal events born outside `commit`: aborts, deadlines, refusals, grammar failures."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def has_work(self) -> bool:
        """False when neither `plan` nor `commit` nor `drain` has anything to do. While only grammars are being compiled, `plan`
        returns None: poll it every few milliseconds."""
        return bool(self._states or self._ended or self._flights or (self._tier is not None and self._tier.has_moves))

    # ── a step ──

    def plan(self) -> BatchPlan | None:
        """The next step; None when nothing can run before something else happens (a commit, a grammar, a request)."""
        assert len(self._flights) <= 1, "at most one step may be in flight while the next one is planned"
        self._end_expired()
        self._lifetimes.expire()
        self._take_grammars()
        if self._tier is not None:
            self._tier.poll()
        if not self._states:
            self._check_idle()
            return self._moves_alone()
        self._is_checked = False
        began = self._clock()
        builder = self.planner.fill()
        while not builder.rows and not self._flights and len(self.planner.running) > 1:
            self.planner.retract_one()  # all are prefilling and hold each other's pages
            builder = self.planner.fill()
        if not builder.rows:
            return self._moves_alone()
        builder.began_at = began
        self.counters.prefill_tokens += builder.num_prefill_tokens
        self.planner.ratio.on_step()
        return self._fly(builder)

    def _fly(self, builder: StepBuilder) -> BatchPlan:
        plan = builder.plan(() if self._tier is None else self._tier.take_moves())
        builder.planned_at = self._clock()
        self._flights.append((plan, builder))
        self.counters.steps += 1
        return plan

    def _moves_alone(self) -> BatchPlan | None:
        """A step without rows, where there is something to save and nobody computes."""
        if self._tier is None or not self._tier.has_moves or self._flights:
            return None
        return self._fly(StepBuilder(self.counters.steps))

    def masks(self, plan: BatchPlan) -> TokenMasks | None:
        """Allowed tokens of the constrained rows of `plan`; None when there are none. To be called after the commit of the plan before."""
        if plan.num_masks == 0:
            return None
        assert self._flights and self._flights[0][0] is plan, "masks are filled when the step before has been committed"
        rows = [(row, state) for row, (state, _) in zip(plan.rows, self._flights[0][1].states, strict=True) if row.mask_row is not None]
        matchers = [state.matcher if row.end == state.num_known else None for row, state in rows]
        begin = self._clock()
        masks = fill_masks(matchers, self._vocab_size, self._mask_filler)
        for row, state in rows:
            if row.end < state.num_known:  # forced after this row was planned
                allow_only(masks.bits[row.mask_row], state.output_ids[row.end - state.prompt_len])
        if self._guesses:
            fill_masks_of_guesses(rows, masks.bits)
        self.counters.masked_rows += plan.num_masks
        self.counters.mask_seconds += self._clock() - begin
        return masks

    def commit(self, plan: BatchPlan, result: StepResult) -> list[RequestOutput]:
        """Take the results of the oldest step in flight."""
        planned, builder = self._flights.popleft()
        assert planned is plan, "steps are committed in the order in which they were planned"
        num_before, committed_before = self.counters.generation_tokens, self._committed_at
        self._observe_cost(builder)
        if self._tier is not None:
            self._tier.committed(plan.moves, done=result.ran)
        outputs = []
        for row, row_result, (state, epoch) in zip(plan.rows, result.rows, builder.states, strict=True):
            output = self._commit_row(state, epoch, row, row_result)
            if output is not None:
                outputs.append(output)
        self._jumps.on_step()
        if self._guesses and result.ran and not builder.num_prefill_tokens:
            tokens = self.counters.generation_tokens - num_before
            seconds = self._committed_at - max(builder.began_at, committed_before)
            self.planner.guess_policy.observe(builder.num_requests, guesses=builder.guesses, tokens=tokens, seconds=seconds)
        return outputs

    def _observe_cost(self, builder: StepBuilder) -> None:
        """The time between the results of two steps is what a request that decodes waits for its token."""
        now = self._clock()
        seconds = now - max(builder.planned_at, self._committed_at)
        if builder.num_decodes:
            self.planner.costs.observe(builder.num_prefill_tokens, seconds)
        if self._tier is not None:
            self._tier.rates.observe_step(builder.num_prefill_tokens, seconds)
        self._committed_at = now

    @property
    def wants_results_first(self) -> bool:
        """The overlapped loop commits the step in flight before it plans the next one: this one then computes what grammars force after
        that one's tokens, and knows which guesses were right."""
        guesses = self.planner.wants_guesses or any(builder.guesses for _, builder in self._flights)
        return guesses or self._jumps.is_high

    # ── the outside view ──

    def stats(self) -> EngineStats:
        counters = self.counters
        stats = EngineStats(
            num_running=len(self.planner.running),
            num_waiting=self.planner.num_waiting,
            num_waiting_grammar=len(self._waiting_grammar),
            total_tokens=self.capacity.num_tokens,
            used_tokens=self.cache.used_tokens,
            evictable_tokens=self.cache.evictable_tokens,
            pinned_tokens=self.cache.pinned_tokens,
            available_tokens=self.cache.available_tokens,
            prompt_tokens_total=counters.prompt_tokens,
            cached_tokens_total=counters.cached_tokens,
            generation_tokens_total=counters.generation_tokens,
            forced_tokens_total=counters.forced_tokens,
            prefill_tokens_total=counters.prefill_tokens,
            possible_cached_tokens_total=self._history.possible_tokens,
            evicted_tokens_total=self.cache.counters.evicted,
            num_retractions_total=counters.retractions,
            num_steps_total=counters.steps,
            guessed_tokens_total=counters.guessed_tokens,
            right_guesses_total=counters.right_guesses,
            grammars_total=0 if self._grammars is None else self._grammars.num_compiled,
            grammar_seconds_total=0.0 if self._grammars is None else self._grammars.compile_seconds,
            masked_rows_total=counters.masked_rows,
            mask_seconds_total=counters.mask_seconds,
            gen_throughput=self._throughput.last,
        )
        return stats if self._tier is None else _with_tier(stats, self._tier.view())

    def settle(self) -> None:
        """Keep the books that nobody waits for: to be called when the device has something to do, or nobody has."""
        self._history.settle()

    def explain(self, request_id: str) -> Lookup | None:
        """Why the prompt of this request was, or was not, found in the cache; None when it is unknown or too long ago."""
        return self._history.explain(request_id)

    def cache_view(self, max_nodes: int) -> CacheView:
        counters, cache = self.counters, self.cache
        return CacheView(
            total_tokens=self.capacity.num_tokens,
            used_tokens=cache.used_tokens,
            pinned_tokens=cache.pinned_tokens,
            cached_tokens=cache.tree.num_tokens,
            prompt=counters.prompt_tokens,
            hit=counters.cached_tokens,
            computed=counters.prefill_tokens,
            least=counters.prompt_tokens - self._history.possible_tokens,
            evicted=cache.counters.evicted,
            evicted_pinned=cache.counters.evicted_pinned,
            duplicate=cache.counters.duplicate,
            pins_revoked=self._lifetimes.num_revoked,
            num_nodes=sum(1 for _ in cache.tree.nodes()),
            tier=None if self._tier is None else self._tier.view(),
            nodes=largest_nodes(cache.tree, max_nodes, self._history.seconds_since),
            divergences=self._history.divergences(16),
        )

    def batch_report(self, plan: BatchPlan, decode_interval: int = 40) -> BatchReport | None:
        """For the log, before `plan` is committed: every step that prefills, and every `decode_interval`-th that only decodes."""
        builder = self._flights[0][1]
        if not builder.num_prefill_tokens and plan.step % decode_interval:
            return None
        throughput = self._throughput.last if builder.num_prefill_tokens else self._throughput.read(self.counters.generation_tokens)
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
        if self.planner.guesser is not None:
            self.planner.guesser.flush()
        self._lifetimes.forget()
        self.planner.ratio.reset()
        return True

    def close(self) -> None:
        """End the threads that compile grammars, and wait for files that are being written."""
        if self._tier is not None:
            self._tier.close()
        if self._grammars is not None:
            self._grammars.close()
        if self.planner.guesser is not None:
            self.planner.guesser.close()

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
        state = RequestState(request, self._num_arrivals, max_outputs, phase)
        if self._guesses and may_guess(state):
            state.is_guessed = True
        return state

    def _enqueue(self, state: RequestState) -> None:
        spec = state.request.grammar
        if spec is None or self._grammars is None:
            self.planner.enqueue(state, len(self.planner.waiting))
            return
        self._waiting_grammar[state.request_id] = state
        compiled = self._grammars.get(spec)
        if compiled is None:
            self._grammars.request(spec, state.request_id, state.max_outputs)
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
        state.matcher = ContainedMatcher(lambda: ForcedRuns(compiled.matcher(state.max_outputs)))
        finish = self._jump_at_start(state)
        if finish is not None:
            self._end(state, finish)
            return
        del self._waiting_grammar[state.request_id]
        state.move(Phase.WAITING)
        self.planner.enqueue(state, len(self.planner.waiting))

    def _jump_at_start(self, state: RequestState) -> Finish | None:
        """What the grammar begins with joins the prefill of the prompt; a grammar that leaves no choice at all needs no model."""
        if not self._may_jump or state.max_outputs == 0:
            return None
        finish = append_forced(state)
        state.extend_prefill()
        self._count(state, state.num_outputs, state.num_outputs)
        if finish is not None:
            state.scheduled_time = self._clock()
            self.counters.prompt_tokens += state.prompt_len
        return finish

    # ── taking results ──

    def _commit_row(self, state: RequestState, epoch: int, row: PlanRow, result: RowResult) -> RequestOutput | None:
        state.rows_in_flight -= 1
        if state.is_finished:
            return None
        end = row.end
        if end > state.num_planned:  # a guess
            if not is_right(state, row):
                return None
            state.num_planned = end
            state.num_right += 1
            self.counters.right_guesses += 1
        finish = self._take_tokens(state, row, result)
        if epoch == state.epoch:
            state.num_computed = min(end, state.num_known)
            if finish is None and end <= len(state.tokens):
                self.planner.share_chunk(state)
        else:
            state.extend_prefill()
        if finish is not None:
            self._close(state)
        return news(state, row, result, finish)

    def _take_tokens(self, state: RequestState, row: PlanRow, result: RowResult) -> Finish | None:
        """The row's tokens, and what the grammar forces behind them."""
        num_outputs = len(state.output_ids)
        finish = take_tokens(state, row, result)
        num_sampled = len(state.output_ids) - num_outputs
        if not num_sampled:
            return finish
        num_forced = 0
        if finish is None and state.matcher is not None and self._may_jump:
            finish = append_forced(state)
            num_forced = len(state.output_ids) - num_outputs - num_sampled
        self._jumps.on_row(jumped=num_forced > 0)
        self._count(state, num_sampled + num_forced, num_forced)
        return finish

    def _count(self, state: RequestState, num_tokens: int, num_forced: int) -> None:
        self.counters.generation_tokens += num_tokens
        if num_forced:
            state.num_forced += num_forced
            self.counters.forced_tokens += num_forced

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
        has_all = state.request.logprobs is None or finish.kind not in (FinishKind.ABORT, FinishKind.ERROR)
        num_new = len(state.output_ids) - state.num_sent if has_all else 0
        self._ended.append(output(state, num_new, finish))

    def _close(self, state: RequestState) -> None:
        self._waiting_grammar.pop(state.request_id, None)
        self.planner.drop(state)
        state.matcher = None
        del self._states[state.request_id]

    def _check_idle(self) -> None:
        if not self._is_checked:
            check_idle(self.cache)
            self._is_checked = True


def _with_tier(stats: EngineStats, tier: TierView) -> EngineStats:
    return replace(
        stats,
        host_tokens=tier.host_tokens,
        host_total_tokens=tier.host_total_tokens,
        disk_tokens=tier.disk_tokens,
        loaded_tokens_total=tier.loaded,
        disk_loaded_tokens_total=tier.loaded_from_disk,
        saved_tokens_total=tier.saved,
    )
