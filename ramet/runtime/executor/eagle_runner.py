"""The steps of an EAGLE-3 head. Called by the thread that runs the model's steps, in between them.

    the model computed tokens s … e-1     `extend`: keys and values of the pairs (feature of s-1, token s) … (feature of e-2, token e-1)
    a guess behind the last known token   `forward`: the pair (feature before it, token), `sample`: the guess behind it
    a guess behind a guess                the same with what the head itself made of the pair before

A pair stands where the token before its own stands: the page table is the model's, but that the head's guesses run ahead of it into a few
pages of its own. A slot's last features are kept, by position: which of them is the last right one is known when the guesses of the step
have been judged. What the head makes of a pair stands in for the next position's feature until the model has computed that.

What it reuses of the prefix cache was computed with the tokens that followed there: the pair at the last cached place is not this request's
where another token follows now, and nobody's where none was computed behind it. That costs right guesses, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ramet.errors import InternalError
from ramet.runtime.attention.attention_backend import AttentionBackend, ForwardBatch, KVPool
from ramet.runtime.executor.inputs import SlotTables, device_tensor, to_device, unpack
from ramet.runtime.executor.pair_layout import lay_out_pairs
from ramet.runtime.executor.sampler import Sampler
from ramet.runtime.executor.step_readback import HostCopy, StepClock
from ramet.runtime.executor.step_runner import FastPath, FastResult
from ramet.runtime.executor.token_choice import TokenChoice
from ramet.runtime.executor.torch_choice import torch_arithmetic
from ramet.runtime.models.eagle_head import EagleHead
from ramet.runtime.models.feature_taps import FeatureTaps
from ramet.runtime.plan import PENDING_TOKEN, BatchPlan, Capacity, ModelInfo, PlanRow, RowResult, StepResult, TokenMasks

GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of requests for which the steps of a chain are recorded: of their forty kernels each takes less than launching it does."""


def pages_of_its_own(num_guesses: int, page_size: int) -> int:
    """Pages per slot for guesses behind the last page that the model's slot has."""
    return -(-num_guesses // page_size)


class PairStep:
    """Implements `cuda_graphs.RecordedStep`: one pair of each row. The feature is what the slot has kept of the pair's place; what the head
    makes of it is left at the place of the next."""

    taps: FeatureTaps | None = None

    def __init__(self, head: EagleHead, attention: AttentionBackend, num_slots: int, num_kept: int) -> None:
        """`num_kept`: of each slot's features, how many last ones."""
        self._head, self._attention, self.num_kept = head, attention, num_kept
        weight = head.fuse.weight
        self.kept = weight.new_zeros(num_slots * num_kept + 1, weight.shape[0])  # the last place: of padding

    def forward(self, batch: ForwardBatch, out: torch.Tensor | None = None) -> torch.Tensor:
        assert batch.token_slots is not None, "features belong to slots"
        first, padding = batch.token_slots * self.num_kept, len(self.kept) - 1
        before = self.kept.index_select(0, first + batch.positions % self.num_kept)
        hidden: torch.Tensor = self._head(before, batch, self._attention)
        following = first + (batch.positions + 1) % self.num_kept
        self.kept.index_copy_(0, torch.where(batch.kv_slots < 0, padding, following), hidden)
        return self._head.logits(hidden, out)


class EagleRunner:
    """Implements `queued_steps.Runner`. A row of its plans begins with the last known token of a request, and brings the pages that the
    request has and the model was not told of, or with PENDING_TOKEN for what was guessed last. It guesses as many tokens as it has, the
    others being PENDING_TOKEN too."""

    def __init__(
        self,
        head: EagleHead,
        taps: FeatureTaps,
        attention: AttentionBackend,
        pool: KVPool,
        model: ModelInfo,
        capacity: Capacity,
        choice: TokenChoice[torch.Tensor] | None,
        num_guesses: int,
        fast_path: Callable[[PairStep, SlotTables], FastPath] | None = None,
    ) -> None:
        """`model`, `capacity`: those of the model. `pool` has `pages_of_its_own` more for each slot, behind the others."""
        self.taps = taps
        self._head, self._attention, self._pool = head, attention, pool
        self._device = head.fuse.weight.device
        self._tables = SlotTables(capacity, model.context_len, self._device, shares=False)
        self._first_own_page, self._num_own_pages = capacity.num_pages, pages_of_its_own(num_guesses, capacity.page_size)
        # Of the positions of one step any may turn out to be the last right one. A chain fills those behind it, up to where it came from.
        self._step = PairStep(head, attention, capacity.max_running, num_guesses + 1)
        self._fast_path = None if fast_path is None else fast_path(self._step, self._tables)
        self._fast: FastResult | None = None
        self._sampler = Sampler(model.vocab_size, torch_arithmetic(model.vocab_size, self._device, choice))
        self._clock = StepClock(self._device)
        self._logits: torch.Tensor | None = None
        self._failure: Exception | None = None

    def extend(self, rows: Sequence[PlanRow], features: torch.Tensor, last_token: torch.Tensor) -> None:
        """See `step_runner.Head`. A failure is kept for `forward` to raise: the model's step has nothing to do with it."""
        try:
            if self._failure is None:
                self._extend(rows, features, last_token)
        except Exception as error:
            self._failure = error

    def _extend(self, rows: Sequence[PlanRow], features: torch.Tensor, last_token: torch.Tensor) -> None:
        self._tables.add_pages(rows)
        fused, recent = self._head.fuse(features), self._step.kept
        parts = lay_out_pairs(rows, self._step.num_kept).parts
        tokens, positions, slots, sources, kept, keeps, keeps_from = unpack(to_device(np.concatenate(parts), self._device), parts)
        if len(tokens):
            tokens = torch.where(tokens == PENDING_TOKEN, last_token[slots], tokens)
            before = torch.cat((fused, recent.index_select(0, kept))).index_select(0, sources)
            places = self._tables.places(slots, positions)
            for part, values in zip((self._pool.keys, self._pool.values), self._head.keys_values(before, tokens, positions), strict=True):
                part[0].index_copy_(0, places, values)
        recent.index_copy_(0, keeps, fused.index_select(0, keeps_from))

    def forward(self, plan: BatchPlan) -> None:
        """Compute the pairs of the rows' first tokens."""
        if self._failure is not None:
            raise InternalError("the head failed beside a step of the model") from self._failure
        self._clock = StepClock(self._device)
        self._clock.start()
        is_known = plan.rows[0].token_ids[0] != PENDING_TOKEN
        rows = [row._replace(token_ids=row.token_ids[:1]) for row in plan.rows]
        self._sampler.begin(rows)
        self._compute([self._with_own_pages(row) for row in rows] if is_known else rows)
        self._clock.stop()

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> ChainReadback:
        """Choose as the model would, and go on from there."""
        self._clock.start()
        rows = [row._replace(token_ids=row.token_ids[:1]) for row in plan.rows]
        tokens = [self._choose(rows, masks)]
        for number in range(1, max(len(row.token_ids) for row in plan.rows)):
            rows = [_further(row, number) for row in plan.rows if number < len(row.token_ids)]
            self._compute(rows)
            tokens.append(self._choose(rows, None))
        self._clock.stop()
        return ChainReadback([len(row.token_ids) for row in plan.rows], torch.cat(tokens), self._clock)

    def _compute(self, rows: Sequence[PlanRow]) -> None:
        """The pairs of rows of one token."""
        pairs = [row._replace(start=row.start - 1) for row in rows]
        self._fast = None
        if self._fast_path is not None and self._fast_path.covers(pairs):
            self._tables.add_pages(pairs)
            self._fast = self._fast_path.run(pairs, ())
        if self._fast is not None:
            self._logits = self._fast.logits
            return
        batch = self._tables.build(pairs).batch
        self._attention.prepare(batch, self._pool)
        self._logits = self._step.forward(batch)

    def _choose(self, rows: Sequence[PlanRow], masks: TokenMasks | None) -> torch.Tensor:
        """A token [S] for each of the rows that were computed last."""
        assert self._logits is not None, "forward() comes before sample()"
        if self._fast is not None and self._sampler.is_plain(rows):
            tokens, slots = self._fast.tokens.clone(), self._fast.slots  # the next step of the chain leaves its own there
        else:
            tokens = self._sampler.sample(rows, self._logits, masks)
            slots = device_tensor([row.slot for row in rows], np.int64, self._device)
        self._tables.last_token.index_copy_(0, slots, tokens)
        self._logits = self._fast = None
        return tokens

    def _with_own_pages(self, row: PlanRow) -> PlanRow:
        first = self._first_own_page + row.slot * self._num_own_pages
        room = self._tables.pages.shape[1] - row.first_page - len(row.new_pages)
        return row._replace(new_pages=(*row.new_pages, *range(first, first + min(self._num_own_pages, room))))


class ChainReadback:
    """Implements `torch_executor.Readback`: the guesses of each row."""

    def __init__(self, lens: Sequence[int], tokens: torch.Tensor, clock: StepClock) -> None:
        """`tokens`: the first ones of all rows, then the second ones of those of `lens` that have so many, and so on."""
        self._lens, self._clock, self._copy = lens, clock, HostCopy([tokens])

    def result(self) -> StepResult:
        tokens = iter(self._copy.wait()[0].tolist())
        found: list[list[int]] = [[] for _ in self._lens]
        for number in range(max(self._lens)):
            for own, length in zip(found, self._lens, strict=True):
                if number < length:
                    own.append(next(tokens))
        return StepResult(tuple(RowResult(tuple(own)) for own in found), self._clock.seconds())


def _further(row: PlanRow, number: int) -> PlanRow:
    """The step of a chain that guesses from its guess `number`, counted from one."""
    return row._replace(token_ids=(PENDING_TOKEN,), start=row.start + number, new_pages=(), reset=None)
