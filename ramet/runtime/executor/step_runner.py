"""One step on the device: inputs, forward pass, sampling. Called by one thread only, forward and sample in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ramet.runtime.attention.attention_backend import ForwardBatch, SharedPrefix
from ramet.runtime.executor.inputs import SlotTables, device_tensor
from ramet.runtime.executor.logprobs import compute_logprobs
from ramet.runtime.executor.page_mover import PageMover
from ramet.runtime.executor.prompt_pieces import PromptPiece, split_output, split_prompt
from ramet.runtime.executor.sampler import Sampler
from ramet.runtime.executor.step_readback import RowLogprobs, StepClock, StepReadback
from ramet.runtime.executor.token_choice import TokenChoice
from ramet.runtime.executor.torch_choice import torch_arithmetic
from ramet.runtime.layers.rank_group import RankGroup
from ramet.runtime.models.feature_taps import FeatureTaps
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, PlanRow, TokenMasks
from ramet.runtime.request import LogprobParams

Forward = Callable[[ForwardBatch], torch.Tensor]
"""Computes a batch: writes keys and values into the pool and returns the logits [S, vocab] float32 of `logit_indices`. The executor
may overwrite them."""


class FastResult(Protocol):
    """For the n rows of the step: `logits` [n, vocab], which may be overwritten, their greedy choice, and slots as int64."""

    @property
    def logits(self) -> torch.Tensor: ...

    @property
    def tokens(self) -> torch.Tensor: ...

    @property
    def slots(self) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Implements `FastResult`: some rows of another one."""

    logits: torch.Tensor
    tokens: torch.Tensor
    slots: torch.Tensor

    @classmethod
    def of(cls, result: FastResult, rows: torch.Tensor) -> SampledRows:
        return cls(*(part.index_select(0, rows) for part in (result.logits, result.tokens, result.slots)))


class Head(Protocol):
    """What guesses from the streams between the model's layers."""

    @property
    def taps(self) -> FeatureTaps: ...

    def extend(self, rows: Sequence[PlanRow], features: torch.Tensor, last_token: torch.Tensor) -> None:
        """The model has computed `rows`; `features` [T, …] are what was tapped on the way, and `last_token` what each slot sampled last."""


class FastPath(Protocol):
    """A faster way through steps of few tokens."""

    @property
    def sizes(self) -> Sequence[int]:
        """Numbers of rows that it prepares for, where each row brings one token; ascending."""

    def covers(self, rows: Sequence[PlanRow]) -> bool:
        """Whether it computes steps of so many rows and tokens."""

    def run(self, rows: Sequence[PlanRow], shared: Sequence[SharedPrefix]) -> FastResult | None:
        """The pages of `rows` are in the slots' tables. What is given is for every row, also one that does not sample, and valid until
        the next step; None: the step is too intricate, and nothing was done."""


class StepRunner:
    """Everything between a plan and its result. On a GPU nothing here waits for the device."""

    def __init__(
        self,
        forward: Forward,
        model: ModelInfo,
        capacity: Capacity,
        device: torch.device,
        fast_path: Callable[[SlotTables], FastPath] | None = None,
        ranks: RankGroup | None = None,
        mover: PageMover | None = None,
        choice: TokenChoice[torch.Tensor] | None = None,
        one_by_one: bool = False,
        head: Head | None = None,
    ) -> None:
        """`ranks`: the others that run the same plans; rank 0 chooses the tokens and tells them. `mover`: to and from host memory.
        `choice`: how tokens are chosen; torch's where there is no faster way. `one_by_one`: rows are sampled each by itself, since some of
        torch's sums on a GPU are added up in another order where there are more rows. `head`: is shown every pass of the model."""
        self._mover, self._one_by_one, self._head = mover, one_by_one, head
        self._forward, self._device, self._ranks = forward, device, ranks
        self._chooses = ranks is None or ranks.rank == 0
        self._tables = SlotTables(capacity, model.context_len, device)
        self._fast_path = fast_path(self._tables) if fast_path is not None else None
        self._fast: FastResult | None = None
        self._sampler = Sampler(model.vocab_size, torch_arithmetic(model.vocab_size, device, choice), chooses=self._chooses)
        self._clock = StepClock(device)
        self._logits: torch.Tensor | None = None  # of the sampling rows, between forward and sample
        self._prompt: list[RowLogprobs] = []

    @property
    def prepared_sizes(self) -> Sequence[int]:
        """Of the fast path; none: there is no such path."""
        return () if self._fast_path is None else self._fast_path.sizes

    def forward(self, plan: BatchPlan) -> None:
        """Compute all rows. A row that wants prompt logprobs runs in pieces where its logits would take too much memory; output that was
        forced runs in one pass with what is before it, but in short rows of its own, which attend as decode rows do."""
        self._clock, self._prompt, self._logits, self._fast = StepClock(self._device), [], None, None
        if plan.moves and self._mover is not None:
            self._mover.run(plan.moves)
        if not plan.rows:
            return
        self._clock.start()
        self._sampler.begin(plan.rows)
        self._fast = self._run_fast(plan)
        self._logits = self._fast.logits if self._fast is not None else self._compute(plan)
        self._clock.stop()

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> StepReadback:
        """Choose the tokens of the sampling rows of the plan whose forward pass came last."""
        self._clock.start()
        tokens = torch.empty(0, dtype=torch.int64, device=self._device)
        sampled: list[RowLogprobs] = []
        numbers = [i for i, row in enumerate(plan.rows) if row.samples]
        if numbers:
            assert self._logits is not None, "forward() comes before sample()"
            rows = [plan.rows[i] for i in numbers]
            if not self._chooses:
                tokens, slots = tokens.new_empty(len(rows)), self._slots_of(rows)
            elif self._fast is not None and self._sampler.is_plain(rows):
                tokens, slots = self._fast.tokens, self._fast.slots
            else:
                tokens, sampled = self._choose(rows, self._logits, numbers, masks)
                slots = self._slots_of(rows)
            if self._ranks is not None:
                self._ranks.broadcast(tokens)
            self._tables.last_token.index_copy_(0, slots, tokens)
        self._clock.stop()
        self._logits = self._fast = None
        return StepReadback(plan, tokens, sampled, self._prompt, self._clock)

    def _choose(
        self, rows: Sequence[PlanRow], logits: torch.Tensor, numbers: Sequence[int], masks: TokenMasks | None
    ) -> tuple[torch.Tensor, list[RowLogprobs]]:
        """Tokens and log-probabilities of `rows`, which are the plan's `numbers`. `logits` are overwritten."""
        if self._one_by_one and len(rows) > 1:
            parts = [self._choose([row], logits[i : i + 1].clone(), [numbers[i]], masks) for i, row in enumerate(rows)]
            return torch.cat([tokens for tokens, _ in parts]), [own for _, sampled in parts for own in sampled]
        before = self._before_changes(rows, logits)
        tokens = self._sampler.sample(rows, logits, masks)
        return tokens, [self._logprobs_of(params, at, unchanged, tokens, numbers) for params, at, unchanged in before]

    def _slots_of(self, rows: Sequence[PlanRow]) -> torch.Tensor:
        return device_tensor([row.slot for row in rows], np.int64, self._device)

    def _run_fast(self, plan: BatchPlan) -> FastResult | None:
        """The step by the faster way, where there is one: the rows that sample."""
        if self._fast_path is None or any(row.prompt_logprobs_from is not None for row in plan.rows):
            return None
        if not self._fast_path.covers(plan.rows):
            return None
        self._tables.add_pages(plan.rows)
        result = self._fast_path.run(plan.rows, self._tables.groups.find(plan.rows) if self._tables.groups is not None else ())
        sampling = [i for i, row in enumerate(plan.rows) if row.samples]
        if result is not None and self._head is not None:
            self._head.extend(plan.rows, self._head.taps.fixed(plan.num_tokens), self._tables.last_token)
        if result is None or len(sampling) == len(plan.rows):
            return result
        return SampledRows.of(result, device_tensor(sampling, np.int64, self._device))

    def _compute(self, plan: BatchPlan) -> torch.Tensor:
        """Logits of the sampling rows, for every kind of step."""
        pieces = [split_prompt(i, row) for i, row in enumerate(plan.rows)]
        for early in [piece for parts in pieces for piece in parts[:-1]]:
            self._run([early])
        return self._run([parts[-1] for parts in pieces])

    def _run(self, rows: Sequence[PromptPiece]) -> torch.Tensor:
        pieces = [part for piece in rows for part in split_output(piece, len(self._sampler[piece.row.slot].start.prompt_ids))]
        wanted = [range(piece.first_wanted, piece.first_wanted + len(piece.targets)) for piece in pieces]
        here = [piece.row for piece in pieces]
        inputs = self._tables.build(here, wanted)
        if self._head is None:
            logits = self._forward(inputs.batch)
        else:
            features = self._head.taps.fresh(len(inputs.batch.token_ids))
            logits = self._forward(inputs.batch)
            self._head.extend(here, features, self._tables.last_token)
        done = 0
        for piece in pieces:
            if piece.targets and self._chooses:
                params = self._sampler[piece.row.slot].start.logprobs or LogprobParams()
                at_once = 1 if self._one_by_one else len(piece.targets)
                for first in range(0, len(piece.targets), at_once):
                    targets = device_tensor(piece.targets[first : first + at_once], np.int64, self._device)
                    part = logits[done + first : done + first + at_once]
                    values = compute_logprobs(part.clone() if self._one_by_one else part, targets, params)
                    self._prompt.append(RowLogprobs((piece.row_index,), params, values))
            done += len(piece.targets)
        return logits[done:]

    def _before_changes(self, rows: Sequence[PlanRow], logits: torch.Tensor) -> list[tuple[LogprobParams, list[int], torch.Tensor]]:
        """Copies of the logits of rows that want logprobs, since sampling overwrites them; by equal wishes."""
        wishes: dict[LogprobParams, list[int]] = {}
        for i, row in enumerate(rows):
            params = self._sampler[row.slot].start.logprobs
            if params is not None:
                wishes.setdefault(params, []).append(i)
        return [(params, at, logits[device_tensor(at, np.int64, self._device)]) for params, at in wishes.items()]

    def _logprobs_of(
        self, params: LogprobParams, at: Sequence[int], logits: torch.Tensor, tokens: torch.Tensor, numbers: Sequence[int]
    ) -> RowLogprobs:
        values = compute_logprobs(logits, tokens[device_tensor(at, np.int64, self._device)], params)
        return RowLogprobs(tuple(numbers[i] for i in at), params, values)
