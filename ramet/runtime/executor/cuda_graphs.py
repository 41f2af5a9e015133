"""Decode steps as CUDA graphs: hundreds of kernels launched by one call.

A graph is recorded for a number of rows, and a step of fewer rows runs in the next larger one, padded with rows that compute nothing
that lasts. Everything that changes from step to step goes into one fixed buffer by one copy: tokens, positions, slots and the
attention's work plan. Pages and last tokens are read from the slots' own tables on the device.

    the first step of a size       runs eagerly, over the same fixed buffer, and is recorded behind
    every further one              one copy, one launch

Its slow twin is the eager forward pass (--disable-cuda-graph).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ramet.log import get_logger
from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool, SharedPrefix
from ramet.runtime.attention.triton_backend import DevicePlan, TritonAttention
from ramet.runtime.attention.work_plan import PlanSizes
from ramet.runtime.executor.inputs import SlotTables, to_device
from ramet.runtime.kernels.gpu.decode_inputs import decode_inputs
from ramet.runtime.kernels.gpu.greedy_choice import greedy_tokens
from ramet.runtime.models.fused_step import FusedStep
from ramet.runtime.plan import PlanRow

_LOG = get_logger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
PADDING = (0, -1, 0)  # token, position, slot


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """`logits` [n, vocab] may be overwritten; `tokens` [n] are their greedy choice; `slots` [n] int64. Valid until the next step."""

    logits: torch.Tensor
    tokens: torch.Tensor
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class Recording:
    """`keeps`: memory that the graph uses and nobody else may free."""

    graph: torch.cuda.CUDAGraph
    result: DecodeResult
    keeps: object


class DecodeGraphs:
    """Runs steps in which every row brings one token and samples one. Used by one thread, on its current stream."""

    def __init__(
        self, step: FusedStep, attention: TritonAttention, pool: KVPool, tables: SlotTables, vocab_size: int, sizes: Sequence[int] = SIZES
    ) -> None:
        self._step, self._attention, self._pool, self._tables = step, attention, pool, tables
        self._device = tables.pages.device
        max_running = tables.pages.shape[0]
        self._sizes = sorted({min(size, max_running) for size in sizes})
        largest = self._sizes[-1]
        length = 3 * largest + sum(self._plan_sizes(largest, shared=True).lengths)
        self._inputs = torch.zeros(length, dtype=torch.int32, device=self._device)
        self._logits = torch.empty(largest, vocab_size, dtype=torch.float32, device=self._device)
        self._recordings: dict[tuple[int, bool], Recording] = {}
        self._memory = torch.cuda.graph_pool_handle()

    def run(self, rows: Sequence[PlanRow], shared: Sequence[SharedPrefix]) -> DecodeResult | None:
        """The step's result; None where no graph covers it."""
        if len(rows) > self._sizes[-1] or any(len(row.token_ids) != 1 or not row.samples for row in rows):
            return None
        size = self._sizes[bisect_left(self._sizes, len(rows))]
        inputs = self._packed(rows, shared, size)
        if inputs is None:
            return None
        self._inputs[: len(inputs)].copy_(to_device(inputs, self._device), non_blocking=True)
        key = (size, bool(shared))
        recording = self._recordings.get(key)
        if recording is None:
            result = self._compute(*key)
            self._recordings[key] = self._record(*key)
        else:
            recording.graph.replay()
            result = recording.result
        return DecodeResult(result.logits[: len(rows)], result.tokens[: len(rows)], result.slots[: len(rows)])

    def _packed(
        self, rows: Sequence[PlanRow], shared: Sequence[SharedPrefix], size: int
    ) -> np.ndarray[tuple[int], np.dtype[np.int32]] | None:
        """Rows and work plan as the graph of this size reads them; None where the plan is larger than the graph provides for."""
        fixed = np.array([(row.token_ids[0], row.start, row.slot) for row in rows] + [PADDING] * (size - len(rows)), dtype=np.int32)
        ones = np.ones(len(rows), dtype=np.int32)
        work = self._attention.plan(ones, fixed[: len(rows), 1] + 1, fixed[: len(rows), 2], shared)
        sizes = self._plan_sizes(size, shared=bool(shared))
        return np.concatenate((fixed.T.reshape(-1), sizes.pack(work))) if sizes.holds(work) else None

    def _plan_sizes(self, size: int, *, shared: bool) -> PlanSizes:
        """Room for every row's own item and the cuts that fill the device; prefixes may serve each row a few times."""
        shape = self._attention.shape
        cuts = 4 * shape.num_processors // shape.num_kv_heads + 1
        members = size + cuts + (4 * size + cuts if shared else 0)
        return PlanSizes(items=size + cuts, shared_items=size + cuts if shared else 0, members=members, rows=size, order=members, tiles=0)

    def _compute(self, size: int, shared: bool) -> DecodeResult:
        """The step over the fixed buffer: what is recorded."""
        rows = self._inputs[: 3 * size].view(3, size)
        inputs = decode_inputs(rows, self._tables.last_token, self._tables.pages, self._tables.page_size)
        sizes = self._plan_sizes(size, shared=shared)
        packed = self._inputs[3 * size : 3 * size + sum(sizes.lengths)]
        self._attention.use(DevicePlan.cut(packed, sizes, self._tables.pages, inputs.kv_slots), self._pool)
        nothing = packed[:0]
        batch = ForwardBatch(
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            kv_slots=inputs.kv_slots,
            query_starts=nothing,
            kv_lens=nothing,
            page_table=self._tables.pages,
            logit_indices=torch.arange(size, device=self._device),
            query_lens=(1,) * size,
            kv_lens_host=(),
        )
        logits = self._step.forward(batch, self._logits[:size])
        return DecodeResult(logits, greedy_tokens(logits), inputs.slots)

    def _record(self, size: int, shared: bool) -> Recording:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
        try:
            result = self._compute(size, shared)
        finally:
            graph.capture_end()
        _LOG.debug("Recorded the decode step of %d rows%s", size, " with shared prefixes" if shared else "")
        return Recording(graph, result, self._attention.partials)
