"""Who runs in the next step, on which slot and which pages: decode rows, prompt chunks, admissions, retractions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from ramet.errors import InternalError
from ramet.runtime.cache.host_blocks import HostBlock
from ramet.runtime.cache.lease import Cache, Lease
from ramet.runtime.config import ScheduleConfig
from ramet.runtime.plan import Capacity, most_sampling_rows
from ramet.runtime.scheduler.admission import NewTokenRatio, PrefillBudget
from ramet.runtime.scheduler.cache_history import CacheHistory
from ramet.runtime.scheduler.fair_shares import FairShares
from ramet.runtime.scheduler.guess_policy import GuessPolicy
from ramet.runtime.scheduler.guessing import Guesser, verifiable
from ramet.runtime.scheduler.kv_lifetimes import KvLifetimes
from ramet.runtime.scheduler.policy import POLICIES, PolicyContext
from ramet.runtime.scheduler.prompt_lookup import PromptLookups
from ramet.runtime.scheduler.request_state import Phase, RequestState
from ramet.runtime.scheduler.sharing import PrefixesInFlight
from ramet.runtime.scheduler.step_builder import StepBuilder
from ramet.runtime.scheduler.step_costs import StepCosts
from ramet.runtime.scheduler.waiting_queue import WaitingQueue

_RETRY_STEPS = 8
"""Steps between two looks at a queue whose head did not fit, as long as nobody leaves."""

_NEWCOMER_PATIENCE = 8
"""One program overtakes with every one of its generations, and ends sooner for it."""


@dataclass(slots=True)
class SchedulerCounters:
    """Cumulative."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0  # really computed, after retractions too
    generation_tokens: int = 0
    forced_tokens: int = 0  # of these, written by a grammar
    guessed_tokens: int = 0
    right_guesses: int = 0
    retractions: int = 0
    steps: int = 0
    masked_rows: int = 0
    mask_seconds: float = 0.0


class StepPlanner:
    """Holds the requests that run or could run, each in exactly one of `waiting`, `retracted` and `running`, in order of arrival there."""

    def __init__(
        self,
        capacity: Capacity,
        options: ScheduleConfig,
        cache: Cache,
        counters: SchedulerCounters,
        clock: Callable[[], float],
        seed: int,
        lifetimes: KvLifetimes,
        history: CacheHistory,
        num_guesses: int = 0,
        guesser: Guesser | None = None,
        guess_policy: GuessPolicy | None = None,
    ) -> None:
        self._by_priority = options.schedule_policy == "priority"
        self.waiting = WaitingQueue(
            fair=not options.disable_run_fairness,
            by_priority=self._by_priority,
            depth_first=options.schedule_policy == "program",
        )
        self.retracted: dict[str, RequestState] = {}
        self.running: dict[str, RequestState] = {}
        self.max_running = min(capacity.max_running, options.max_running_requests or capacity.max_running)
        self.ratio = NewTokenRatio()
        self.costs = StepCosts()
        self._capacity = capacity
        self._page_size = capacity.page_size
        self._options = options
        self._cache = cache
        self._counters = counters
        self._clock = clock
        self._num_guesses = num_guesses
        self.guesser = PromptLookups() if num_guesses and guesser is None else guesser
        self.guess_policy = guess_policy or GuessPolicy(always=True)
        self._lifetimes = lifetimes
        self._history = history
        self._shares = FairShares()
        self._free_slots = list(range(self.max_running - 1, -1, -1))
        self._order = POLICIES[options.schedule_policy]
        self._context = PolicyContext(cache, random.Random(seed), max_overtakes=4 * self.max_running)
        self._prefixes = PrefixesInFlight(capacity.page_size)
        self._prefilling: list[RequestState] = []  # as of the step being planned, in order
        self._retry_step = 0

    def enqueue(self, state: RequestState, queue_ahead: int) -> None:
        """`state` may run from now on; `queue_ahead` requests were here first."""
        state.queue_ahead = queue_ahead
        state.admissions_before = self._context.num_admissions
        self.waiting.add(state)
        self._wish(state)
        self._lifetimes.arrived(state)
        if self._by_priority or self._lifetimes.has_begun(state.request.group):
            self._retry_step = 0

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.retracted)

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def drop(self, state: RequestState) -> None:
        """`state` has ended, wherever it was."""
        if state.is_running:
            self.leave(state, Phase.FINISHED)
            self._retry_step = 0
            return
        self.waiting.discard(state)
        self.retracted.pop(state.request_id, None)
        state.move(Phase.FINISHED)
        if self._cache.tier is not None:
            self._cache.tier.forget(state.request_id)

    @property
    def wants_guesses(self) -> bool:
        """Whether the next step would be planned with guesses."""
        if self.guesser is None or self.guesser.has_failed or not any(state.is_guessed for state in self.running.values()):
            return False
        return self.guess_policy.guesses(len(self.running))

    def fill(self) -> StepBuilder:
        """Rows for as many requests as slots, pages and the token budget allow; may be none."""
        builder = StepBuilder(self._counters.steps)
        if self._by_priority and self.num_waiting:
            self._preempt()
        budget = PrefillBudget(self._options.max_prefill_tokens, self._chunk())
        self._add_decodes(builder, budget)
        self._add_chunks(builder, budget)
        self._admit(builder, budget)
        return builder

    def _chunk(self) -> int | None:
        """Prompt tokens of this step; None: prompts are not split."""
        chunk, bound = self._options.chunked_prefill_size, self._options.max_inter_token_seconds
        if chunk is None or chunk <= 0:
            return None
        if not any(state.is_decoding for state in self.running.values()):
            return max(chunk, self._undisputed())
        return chunk if bound is None else min(chunk, self.costs.chunk_within(bound))

    def _undisputed(self) -> int:
        """Prompt tokens that only one request can use in these steps: it came alone, or is first in line for all of them."""
        most, first = self._options.idle_chunked_prefill_size or 0, next(iter(self.running.values()), None)
        if first is None:
            return most if self.num_waiting == 1 else 0
        return min(first.prefill_end - first.num_planned, most)

    def _add_decodes(self, builder: StepBuilder, budget: PrefillBudget) -> None:
        """One row for every request that decodes; when pages run out, some requests give up theirs."""
        rows = self._decoding(budget.left)
        while (pages := self._cache.allocate(sum([missing for _, _, missing in rows]))) is None:
            self.retract_one()
            rows = self._decoding(budget.left)
        builder.num_requests = len(self.running)
        wanted = self._guessable(rows) if self.wants_guesses else []
        builder.guesses = bool(wanted)
        num_forced, guessed = 0, self._guess(wanted)
        for state, num_tokens, missing in rows:
            if missing:
                self._take_pages(state, missing, pages)
            builder.decode(state, num_tokens)
            num_forced += num_tokens - 1
            if state.request_id in guessed:
                self._add_guesses(state, guessed[state.request_id], builder)
        budget.spend_forced(num_forced)

    def _take_pages(self, state: RequestState, count: int, pages: list[int]) -> None:
        assert state.lease is not None, "only a running request takes pages"
        state.lease.pages += pages[-count:]
        del pages[-count:]

    def _guessable(self, rows: Sequence[tuple[RequestState, int, int]]) -> list[tuple[RequestState, int]]:
        """The requests that are about to sample, all of whose tokens are known, and how many tokens to guess of each: as many rows sample
        in a step as memory was planned for."""
        wanted, room = [], most_sampling_rows(self.max_running) - len(rows)
        for state, num_tokens, _ in rows:
            most = min(self._num_guesses, state.max_outputs - state.num_outputs - 1, room)
            if state.is_guessed and most > 0 and not state.rows_in_flight and state.num_planned + num_tokens == state.num_known:
                wanted.append((state, most))
                room -= most
        return wanted

    def _guess(self, wanted: Sequence[tuple[RequestState, int]]) -> dict[str, list[int]]:
        """What may follow."""
        found = self.guesser.guess(wanted) if wanted and self.guesser is not None else []
        return {state.request_id: verifiable(state, tokens) for (state, _), tokens in zip(wanted, found, strict=True)}

    def _add_guesses(self, state: RequestState, guessed: list[int], builder: StepBuilder) -> None:
        """Guesses run where pages are free without evicting anything."""
        missing = self._missing_pages(state, state.num_planned + len(guessed))
        if guessed and missing * self._page_size <= self._cache.available_tokens:
            pages = self._cache.allocate(missing)
            assert pages is not None, "there were free pages"
            if missing:
                self._take_pages(state, missing, pages)
            builder.guess(state, guessed)
            state.num_verified += 1
            state.num_guessed += len(guessed)
            self._counters.guessed_tokens += len(guessed)

    def _decoding(self, room: int) -> list[tuple[RequestState, int, int]]:
        """Requests that decode in this step, how many tokens each computes, and how many pages it lacks for them: one token, and as many
        forced ones as there are, up to `room` in all."""
        rows, self._prefilling = [], []
        for state in self.running.values():
            if not state.is_decoding:
                self._prefilling.append(state)
                continue
            num_known, promised = state.num_known, state.promised
            if max(num_known, promised) - state.prompt_len >= state.max_outputs:
                continue  # all its tokens are on their way
            num_tokens = 1
            if promised <= num_known and (forced := min(num_known - state.num_planned - 1, room)):
                num_tokens += forced
                room -= forced
            rows.append((state, num_tokens, self._missing_pages(state, state.num_planned + num_tokens)))
        return rows

    def _add_chunks(self, builder: StepBuilder, budget: PrefillBudget) -> None:
        for state in self._prefilling:
            if budget.is_spent:
                return
            self._add_chunk(state, builder, budget)

    def _add_chunk(self, state: RequestState, builder: StepBuilder, budget: PrefillBudget) -> None:
        """Prefill as much of `state` as budget and pages allow."""
        assert state.lease is not None
        granted = self._granted(state.lease, state.num_planned, state.prefill_end, budget)
        if not granted:
            return
        pages = self._cache.allocate(self._missing_pages(state, state.num_planned + granted))
        assert pages is not None, "room was counted before"
        state.lease.pages.extend(pages)
        budget.spend(granted)
        builder.prefill(state, granted)

    def _granted(self, lease: Lease, start: int, stop: int, budget: PrefillBudget) -> int:
        room = (len(lease.pages) + self._cache.available_pages) * self._page_size - start
        return budget.grant(stop - start, room)

    def _missing_pages(self, state: RequestState, num_tokens: int) -> int:
        """Pages that the lease lacks to hold `num_tokens`."""
        assert state.lease is not None
        missing = -(-num_tokens // self._page_size) - len(state.lease.pages)
        return missing if missing > 0 else 0

    # ── admission and retraction ──

    def _admit(self, builder: StepBuilder, budget: PrefillBudget) -> None:
        """Let waiting requests in: the retracted first, then in the order of the policy, until slots, budget or pages are used up."""
        if not (self.waiting or self.retracted) or not self._free_slots or budget.is_spent:
            return
        if self.running and self._counters.steps < self._retry_step:
            return
        page_size = self._page_size
        reserved = sum(self.ratio.reserve(state, state.num_planned, page_size) for state in self.running.values())
        kept = self._kept_pages()
        newcomers_fit = True
        for state in self._candidates():
            if not self._free_slots or budget.is_spent:
                return
            is_newcomer = kept > 0 and self._is_newcomer(state)
            if self._should_wait(state) or (is_newcomer and not newcomers_fit):
                continue
            if not self._try_admit(state, builder, budget, reserved + kept * is_newcomer):
                if not is_newcomer:
                    return
                newcomers_fit = False
                continue
            reserved += self.ratio.reserve(state, state.num_planned, page_size)

    def _kept_pages(self) -> int:
        """Those of runs that have begun: those that have not must find room beside them. Where what is pushed out comes back cheaply, a
        run that waits for its host may lose it meanwhile; one that goes on at once may not."""
        kept = self._cache.pinned_tokens
        if kept and self._cache.tier is not None:
            kept = self._lifetimes.tokens_wanted_soon()
        return kept // self._page_size

    def _candidates(self) -> Iterable[RequestState]:
        """The retracted first, except that a higher priority goes before them."""
        waiting = self.waiting.in_order(self._order, self._shares, self._context)
        together = chain(list(self.retracted.values()), waiting)
        return sorted(together, key=lambda state: -state.request.priority) if self._by_priority else together

    def _preempt(self) -> None:
        """The first that waits takes the place of those whose priority is much lower, the latest of the lowest first, until it fits."""
        head = next((state for state in self._candidates() if not state.rows_in_flight), None)
        while head is not None and len(self.running) > 1 and not self._fits(head):
            victim = min(self.running.values(), key=lambda state: (state.request.priority, -state.arrival))
            if head.request.priority - victim.request.priority <= self._options.priority_scheduling_preemption_threshold:
                return
            self._retract(victim)
            self._retry_step = 0

    def _fits(self, state: RequestState) -> bool:
        size = self._page_size
        reserved = sum(self.ratio.reserve(each, each.num_planned, size) for each in self.running.values())
        needed = self.ratio.reserve(state, self._context.cached_len(state), size)
        return bool(self._free_slots) and needed <= self._cache.available_pages - reserved

    def _should_wait(self, state: RequestState) -> bool:
        """A retracted request whose last row is still in flight, or one whose prefix is being read from disk, or computed by another."""
        if self._cache.tier is not None and self._cache.tier.is_waiting(state.request_id):
            return True
        if state.rows_in_flight or not self._prefixes:
            return state.rows_in_flight > 0
        return self._prefixes.is_worth_waiting(state.request.cache_namespace, state.reusable, self._context.cached_len(state))

    def _is_newcomer(self, state: RequestState) -> bool:
        """Whose run has not begun, or has lost its KV: it may not push out what others go on from, as long as anything runs and it was
        not overtaken too often."""
        if state.phase is not Phase.WAITING or self._context.is_overdue(state, _NEWCOMER_PATIENCE):
            return False
        return not self._lifetimes.has_begun(state.request.group) or 2 * self._context.cached_len(state) < state.prefill_end

    def _try_admit(self, state: RequestState, builder: StepBuilder, budget: PrefillBudget, reserved: int) -> bool:
        """Admit `state` if its prompt, and its likely share of output, fit beside the `reserved` pages; alone it always fits."""
        lease = self._cache.acquire(state.request.cache_namespace, state.reusable, state.request.group)
        needed = self.ratio.reserve(state, lease.num_shared, self._page_size)
        if self.running and needed > self._cache.available_pages - reserved:
            self._retry_step = self._counters.steps + _RETRY_STEPS
            self._cache.release(lease)
            return False
        blocks = self._blocks_behind(state, lease)
        num_loaded = self._len_of(blocks, lease.num_shared)
        if not self._granted(lease, lease.num_shared + num_loaded, state.prefill_end, budget):
            self._cache.release(lease)
            return False
        self._load(blocks, lease, num_loaded)
        self._start(state, lease, builder, num_loaded)
        self._add_chunk(state, builder, budget)
        return True

    # ── the second tier ──

    def _wish(self, state: RequestState) -> None:
        """What the tier has of a request that waits should be at hand when its turn comes."""
        tier = self._cache.tier
        if tier is not None:
            tier.wish(state.request_id, state.request.cache_namespace, state.reusable, self._context.cached_len(state))

    def _blocks_behind(self, state: RequestState, lease: Lease) -> list[HostBlock]:
        """What host memory has behind the cached prefix."""
        tier = self._cache.tier
        return [] if tier is None else tier.find(state.request_id, lease.num_shared, len(state.reusable))

    def _len_of(self, blocks: list[HostBlock], start: int) -> int:
        tier = self._cache.tier
        return 0 if tier is None or not blocks else len(blocks) * tier.block_tokens - start % tier.block_tokens

    def _load(self, blocks: list[HostBlock], lease: Lease, num_tokens: int) -> None:
        """Into pages of the lease's own. They are cached when the request's first row is committed, and with it these moves."""
        tier = self._cache.tier
        if tier is None or not blocks:
            return
        tier.hold(blocks)  # making room may save what is evicted, and that must not take their place
        pages = self._cache.allocate(num_tokens // self._page_size)
        assert pages is not None, "room was counted before"
        lease.pages.extend(pages)
        tier.load(blocks, lease.num_shared, pages)

    def _start(self, state: RequestState, lease: Lease, builder: StepBuilder, num_loaded: int = 0) -> None:
        is_first = state.phase is Phase.WAITING
        if is_first:
            self.waiting.admit(state)
        else:
            del self.retracted[state.request_id]
        self._lifetimes.admitted(state)
        state.start(lease, self._free_slots.pop(), num_loaded)
        self._shares.charge(state.request.group, state.prefill_end - state.num_matched + int(state.most_outputs * self.ratio.value))
        if self._cache.tier is not None:
            self._cache.tier.forget(state.request_id)
        self.running[state.request_id] = state
        if self._cache.reuses:
            self._prefixes.add(state)
        builder.num_new_requests += 1
        builder.num_cached_tokens += state.num_matched
        if is_first:
            state.scheduled_time = self._clock()
            state.cached_tokens = min(state.num_matched, state.prompt_len)
            state.loaded_tokens = min(num_loaded, state.cached_tokens)
            self._context.num_admissions += 1
            self._counters.prompt_tokens += state.prompt_len
            self._counters.cached_tokens += state.cached_tokens
            self._history.admitted(state, state.cached_tokens, self._cache.tree.tick)

    def _save_early(self, state: RequestState) -> None:
        tier, lease = self._cache.tier, state.lease
        if tier is not None and tier.saves_early and lease is not None:
            tier.save(state.request.cache_namespace, state.computed_tokens()[: lease.num_shared], lease.pages)

    def retract_one(self) -> None:
        """Take the pages of the request that loses least, computed tokens counted; it comes back first and computes them again, or
        finds them in the cache. The last one running stays: alone it fits, or it would have been refused."""
        running = self.running.values()
        if len(running) < 2:
            raise InternalError("a request that runs alone lacks KV pages; the page accounting must be wrong")
        victim = min(running, key=lambda state: (state.num_planned - state.num_matched, -state.arrival))
        self.ratio.on_retraction(running)
        self._retract(victim)

    def _retract(self, victim: RequestState) -> None:
        self.leave(victim, Phase.RETRACTED)
        self.retracted[victim.request_id] = victim
        self._wish(victim)
        self._retry_step = self._counters.steps + _RETRY_STEPS
        self._counters.retractions += 1

    def share_chunk(self, state: RequestState) -> None:
        """Cache a chunk as soon as it is computed, so that requests with the same prefix can start."""
        assert state.lease is not None
        end = state.num_computed - (state.logprobs_next is not None)  # the next chunk will compute that token again
        replaced_from = self._cache.insert(state.lease, state.tokens[:end])
        if replaced_from is not None:
            state.num_pages_sent = min(state.num_pages_sent, replaced_from)
        if state.num_computed == state.prefill_end:
            self._prefixes.remove(state)

    def leave(self, state: RequestState, phase: Phase) -> None:
        """Give slot and pages back; what is computed stays in the cache as long as there is room."""
        assert state.lease is not None
        self._prefixes.remove(state)
        self._cache.insert(state.lease, state.computed_tokens())
        if phase is Phase.FINISHED:
            self._lifetimes.ended(state)
            self._history.left(state)
            self._save_early(state)
        self._cache.release(state.lease)
        self._free_slots.append(state.slot)
        if self.guesser is not None:
            self.guesser.forget(state.request_id)
        del self.running[state.request_id]
        state.stop_running(phase)
