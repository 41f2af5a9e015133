"""One step on the CPU: inputs, the C++ step, sampling. Called by one thread only, forward and sample in turn. The twin of `step_runner` for
a machine without a device to wait for. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ramet.runtime.executor.cpu_inputs import CpuSlotTables
from ramet.runtime.executor.cpu_logprobs import token_logprob
from ramet.runtime.executor.cpu_penalties import CpuPenalties
from ramet.runtime.executor.prompt_pieces import PromptPiece, split_output, split_prompt, without_context
from ramet.runtime.executor.sampler import Sampler
from ramet.runtime.executor.token_choice import RowArithmetic, TokenChoice
from ramet.runtime.kernels.cpu_kv_pool import CpuKvPool
from ramet.runtime.models.decoder_step import StepBatch
from ramet.runtime.plan import BatchPlan, Capacity, ModelInfo, PageMove, PlanRow, RowResult, StepResult, TokenMasks
from ramet.runtime.request import LogprobParams, TokenLogprob

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class CpuStep(Protocol):
    """What `DecoderStep` does, behind a seam."""

    def forward(self, batch: StepBatch, pool: CpuKvPool, logits: Floats) -> None:
        """Logits of `batch.logit_indices` into `logits` [S, vocab]; writes the batch's keys and values into `pool`."""


class CpuRunner:
    """Everything between a plan and its result."""

    def __init__(
        self,
        step: CpuStep,
        pool: CpuKvPool,
        model: ModelInfo,
        capacity: Capacity,
        choice: TokenChoice[Array],
        move: Callable[[Sequence[PageMove]], None] | None = None,
    ) -> None:
        """`move`: KV between the pool and the memory of the second tier."""
        self._step, self._pool, self._move, self._most_lines = step, pool, move, capacity.max_running
        self._tables = CpuSlotTables(capacity, model.context_len)
        arithmetic: RowArithmetic[Array] = RowArithmetic(choice, CpuPenalties(model.vocab_size), np.array)
        self._sampler = Sampler(model.vocab_size, arithmetic)
        self._room = np.empty((0, model.vocab_size), dtype=np.float32)
        self._logits = self._room  # of the sampling rows, between forward and sample
        self._prompt: list[list[TokenLogprob]] = []  # of each row
        self._seconds = 0.0

    def forward(self, plan: BatchPlan) -> None:
        """Compute all rows. A row that wants prompt logprobs runs in pieces where its logits would take too much memory; output that was
        forced runs in one pass with what is before it, but in short rows of its own, which attend as decode rows do."""
        began = time.perf_counter()
        if plan.moves and self._move is not None:
            self._move(plan.moves)
        self._prompt = [without_context(row) for row in plan.rows]
        if plan.rows:
            self._sampler.begin(plan.rows)
            self._logits = self._decode(plan.rows) if _is_decode(plan.rows) else self._compute(plan.rows)
        self._seconds = time.perf_counter() - began

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> StepResult:
        """Choose the tokens of the sampling rows of the plan whose forward pass came last."""
        began = time.perf_counter()
        rows = [row for row in plan.rows if row.samples]
        chosen: list[tuple[int, TokenLogprob | None]] = []
        if rows:
            wishes = [self._logprobs(row) for row in rows]
            unchanged = [None if wish is None else self._logits[i].copy() for i, wish in enumerate(wishes)]
            tokens = self._sampler.sample(rows, self._logits, masks)
            self._tables.last_token[[row.slot for row in rows]] = tokens
            chosen = [
                (token, None if wish is None or logits is None else token_logprob(logits, token, wish))
                for token, wish, logits in zip(tokens.tolist(), wishes, unchanged, strict=True)
            ]
        results = _results(plan.rows, chosen, self._prompt)
        return StepResult(results, self._seconds + time.perf_counter() - began)

    def _decode(self, rows: Sequence[PlanRow]) -> Floats:
        logits = self._run(self._tables.build_decode(rows))
        sampling = [i for i, row in enumerate(rows) if row.samples]
        return logits if len(sampling) == len(rows) else logits[sampling]

    def _compute(self, rows: Sequence[PlanRow]) -> Floats:
        """Logits of the sampling rows, for every kind of step."""
        pieces = [split_prompt(i, row) for i, row in enumerate(rows)]
        for early in [piece for parts in pieces for piece in parts[:-1]]:
            self._run_pieces([early])
        return self._run_pieces([parts[-1] for parts in pieces])

    def _run_pieces(self, rows: Sequence[PromptPiece]) -> Floats:
        pieces = [part for piece in rows for part in split_output(piece, len(self._sampler[piece.row.slot].start.prompt_ids))]
        wanted = [range(piece.first_wanted, piece.first_wanted + len(piece.targets)) for piece in pieces]
        batch, num_wanted = self._tables.build([piece.row for piece in pieces], wanted)
        logits = self._run(batch)
        targets = [(piece, target) for piece in pieces for target in piece.targets]
        for line, (piece, target) in zip(logits[:num_wanted], targets, strict=True):
            params = self._logprobs(piece.row) or LogprobParams()
            self._prompt[piece.row_index].append(token_logprob(line, target, params))
        return logits[num_wanted:]

    def _run(self, batch: StepBatch) -> Floats:
        """Logits [S, vocab], which the next step overwrites: new memory would have to be zeroed by the system first. What only the
        log-probabilities of a prompt need is not kept."""
        count, room = len(batch.logit_indices), self._room
        if len(room) < count:
            room = np.empty((count, room.shape[1]), dtype=np.float32)
            self._room = room if count <= self._most_lines else self._room
        logits = room[:count]
        self._step.forward(batch, self._pool, logits)
        return logits

    def _logprobs(self, row: PlanRow) -> LogprobParams | None:
        return self._sampler[row.slot].start.logprobs


def _is_decode(rows: Sequence[PlanRow]) -> bool:
    return all(len(row.token_ids) == 1 and row.prompt_logprobs_from is None for row in rows)


def _results(
    rows: Sequence[PlanRow], chosen: Sequence[tuple[int, TokenLogprob | None]], prompt: Sequence[Sequence[TokenLogprob]]
) -> tuple[RowResult, ...]:
    """`chosen`: of the rows that sample."""
    ahead = iter(chosen)
    results = []
    for row, before in zip(rows, prompt, strict=True):
        token, logprob = next(ahead) if row.samples else (None, None)
        results.append(RowResult(() if token is None else (token,), () if logprob is None else (logprob,), tuple(before)))
    return tuple(results)
