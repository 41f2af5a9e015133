"""A small model that guesses the next tokens of a large one, one after the other, before the large one computes them all in one step.

It is an executor of its own beside the model's, with its own slots, pages and prefix cache, driven by plans like any other. It samples
with the request's own parameters, seed, position and grammar mask: both models' tokens race with the same noise (`race_choice`), so that a
draft which is the model itself is right every time, also at a temperature, and what the model says never depends on it.

    known tokens  0 ……………… sure ┐ what the model made of the last guesses: those that were right are in the draft's pages already
    in the pages  0 ……………………… computed
    this round    known[computed:] → guess 1 → guess 2 …        only the last guess is not computed

A request that finds no slot or page, or is longer than the draft's context, is not guessed. Nor is one with a token among the model's
padding that the draft does not have; what only the draft has is no guess. A draft that fails is given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from ramet.errors import ConfigError
from ramet.log import get_logger
from ramet.runtime.cache.lease import Lease
from ramet.runtime.cache.prefix_cache import PrefixCache
from ramet.runtime.engine.guess_rounds import Guessing, GuessRounds, row_start
from ramet.runtime.executor.executor import Executor
from ramet.runtime.plan import PENDING_TOKEN, PlanRow
from ramet.runtime.scheduler.request_state import RequestState

_LOG = get_logger(__name__)
MOST_PADDING = 1024
"""By how much the widths of two models' logits may differ that have one tokenizer: some are padded."""


@dataclass(slots=True)
class Draft:
    """One request in the draft's slot. `tokens`: known ones. `fed`: guesses in the pages behind `sure`, in order."""

    slot: int
    lease: Lease
    tokens: list[int]
    sure: int
    fed: list[int] = field(default_factory=list)
    num_pages_sent: int = 0
    is_fresh: bool = True

    def learn(self, state: RequestState) -> int:
        """Take what has become known, and return how many tokens lie in the pages rightly; the last known one is always computed anew."""
        self.tokens += state.output_ids[len(self.tokens) - state.prompt_len :]
        computed = self.sure
        for token in self.fed:
            if computed >= len(self.tokens) or self.tokens[computed] != token:
                break
            computed += 1
        self.fed.clear()
        self.sure = min(computed, len(self.tokens) - 1)
        return self.sure


@dataclass(slots=True)
class Drafting(Guessing):
    """A request with its draft."""

    draft: Draft = field(kw_only=True)


class DraftModel:
    """Implements `scheduler.guessing.Guesser` over an executor. `chunk`: tokens of known text per step at most."""

    def __init__(self, executor: Executor, vocab_size: int, *, chunk: int) -> None:
        """`vocab_size`: of the model that it guesses for. Raises `ConfigError` where the two cannot have one tokenizer."""
        own = executor.model.vocab_size
        if abs(own - vocab_size) > MOST_PADDING:
            message = f"the draft model {executor.model.name} has {own} tokens, the model {vocab_size}: they need the same tokenizer"
            raise ConfigError(message, param="speculative_draft_model_path")
        self._executor, self._vocab_size, self._chunk = executor, vocab_size, chunk
        self._page_size = executor.capacity.page_size
        self.cache = PrefixCache(executor.capacity.num_pages, self._page_size, "lru")
        self._free_slots = list(range(executor.capacity.max_running - 1, -1, -1))
        self._drafts: dict[str, Draft] = {}
        self._rounds = GuessRounds(executor, vocab_size, own, self._next_row)
        self.has_failed = False

    def guess(self, wanted: Sequence[tuple[RequestState, int]]) -> list[list[int]]:
        rounds: dict[str, Drafting] = {}
        try:
            if not self.has_failed:
                rounds = self._begin(wanted)
                self._run(list(rounds.values()))
        except Exception as error:
            self.has_failed, rounds = True, {}
            _LOG.error("The draft model failed and is given up; generation goes on without guesses", exc_info=error)
        return [self._known_to_both(rounds[state.request_id].guessed) if state.request_id in rounds else [] for state, _ in wanted]

    def _known_to_both(self, guessed: list[int]) -> list[int]:
        return list(takewhile(lambda token: token < self._vocab_size, guessed))

    def forget(self, request_id: str) -> None:
        draft = self._drafts.pop(request_id, None)
        if draft is not None:
            self._share(draft)
            self.cache.release(draft.lease)
            self._free_slots.append(draft.slot)

    def flush(self) -> None:
        self.cache.flush()

    def close(self) -> None:
        self._executor.close()

    # ── who takes part ──

    def _begin(self, wanted: Sequence[tuple[RequestState, int]]) -> dict[str, Drafting]:
        """Requests with something to compute and room for it, as many as one step's tokens allow."""
        rounds: dict[str, Drafting] = {}
        room = self._chunk
        for state, most in wanted:
            draft = self._drafts.get(state.request_id) or self._admit(state)
            if draft is None or not room:
                continue
            draft.learn(state)
            if max(draft.tokens[draft.sure :]) >= self._executor.model.vocab_size:
                continue
            most = min(most, self._executor.model.context_len - state.num_known)
            if most < 1 or not self._has_pages(draft, state.num_known + most - 1):
                continue
            room -= min(state.num_known - draft.sure, room)
            rounds[state.request_id] = Drafting(state, most, draft=draft)
        return rounds

    def _admit(self, state: RequestState) -> Draft | None:
        if not self._free_slots:
            return None
        tokens = [*state.request.prompt_ids, *state.output_ids]
        lease = self.cache.acquire(state.request.cache_namespace, np.array(tokens[:-1], dtype=np.int32), state.request.group)
        draft = self._drafts[state.request_id] = Draft(self._free_slots.pop(), lease, tokens, lease.num_shared)
        return draft

    def _has_pages(self, draft: Draft, num_tokens: int) -> bool:
        missing = -(-num_tokens // self._page_size) - len(draft.lease.pages)
        pages = self.cache.allocate(missing) if missing > 0 else []
        draft.lease.pages += pages or []
        return pages is not None

    def _share(self, draft: Draft) -> None:
        """Cache what is known and computed, for requests that begin alike."""
        replaced_from = self.cache.insert(draft.lease, np.array(draft.tokens[: draft.sure], dtype=np.int32))
        if replaced_from is not None:
            draft.num_pages_sent = min(draft.num_pages_sent, replaced_from)

    # ── a round: one step over what is new to the draft, then one for each further guess ──

    def _run(self, rounds: Sequence[Drafting]) -> None:
        rows = [(self._known_row(one), one) for one in rounds]
        fresh = [one.draft for row, one in rows if row.reset is not None]
        self._rounds.run(rows)
        for one in rounds:
            one.draft.fed = one.guessed[: max(one.num_asked - 1, 0)]
        for draft in fresh:
            self._share(draft)

    def _known_row(self, one: Drafting) -> PlanRow:
        """What is known and not computed, or as much of it as one step takes: only behind the whole of it there is something to guess."""
        draft, state = one.draft, one.state
        start, end = draft.sure, min(state.num_known, draft.sure + self._chunk)
        samples = end == state.num_known
        one.num_asked, draft.sure = int(samples), end
        return self._row(one, tuple(draft.tokens[start:end]), start, samples=samples)

    def _next_row(self, one: Drafting) -> PlanRow:
        return self._row(one, (PENDING_TOKEN,), one.state.num_known + one.num_asked - 2, samples=True)

    def _row(self, one: Drafting, token_ids: tuple[int, ...], start: int, *, samples: bool) -> PlanRow:
        draft, request = one.draft, one.state.request
        first_page, draft.num_pages_sent = draft.num_pages_sent, len(draft.lease.pages)
        reset = row_start(one.state) if draft.is_fresh else None
        draft.is_fresh = False
        new_pages, mask_row = tuple(draft.lease.pages[first_page:]), 0 if samples and one.state.matcher is not None else None
        return PlanRow(request.request_id, draft.slot, token_ids, start, first_page, new_pages, samples, reset, None, mask_row)
