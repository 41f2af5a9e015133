"""Short steps as CUDA graphs: hundreds of kernels launched by one call.

A graph is recorded for a number of tokens and of rows, and a smaller step runs in the next larger one, padded with tokens that leave
nothing behind. Decode steps have as many rows as tokens; short prompts and rows of several forced tokens, whose launching would take
longer than their computing, have graphs of their own. Everything that changes from step to step goes into one fixed buffer by one copy:
tokens, positions, slots and the attention's work plan. Pages and last tokens are read from the slots' own tables on the device.

    the first steps of a size      run in a larger recording, if there is one that is not much larger; most sizes only pass by
    when padding has cost as much  one runs eagerly, over the same fixed buffer, and is recorded behind: as long as ten others
    every further one              one copy, one launch

Its slow twin is the eager forward pass (--disable-cuda-graph).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ramet.log import get_logger
from ramet.runtime.attention.attention_backend import ForwardBatch, KVPool, SharedPrefix
from ramet.runtime.attention.triton_backend import DevicePlan, TritonAttention
from ramet.runtime.attention.work_plan import Int32Array, PlanSizes
from ramet.runtime.executor.inputs import SlotTables, to_device
from ramet.runtime.kernels.gpu.decode_inputs import decode_inputs
from ramet.runtime.kernels.gpu.greedy_choice import greedy_tokens
from ramet.runtime.kernels.gpu.rehearsal import is_rehearsing
from ramet.runtime.models.feature_taps import FeatureTaps
from ramet.runtime.plan import PlanRow

_LOG = get_logger(__name__)

MIXED_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
FEW_MIXED, MOST_MIXED = (16, 32, 64, 96, 128), (768, 1024)
"""Tokens of steps in which some row brings several (short prompts, pieces of long ones, output that a grammar forced); between these, the
sizes of decode steps."""
MAX_RECORDINGS = 96
MOST_PADDING = 2048
"""Tokens and rows that the steps of a size may be padded with in all before it gets a recording of its own: at 25 µs each they have then
cost the 50 ms that recording takes."""
MOST_PAIRS = 1 << 22
"""Of queries and keys in rows of several tokens: beyond, the kernel for long prompts saves more than launching costs."""
PADDING = ((0,), (-1,), (0,))  # token, position, slot


@dataclass(frozen=True, slots=True)
class GraphKey:
    """What a recording is made for. `mixed`: some rows bring several tokens."""

    tokens: int
    rows: int
    shared: bool
    mixed: bool

    def holds(self, other: GraphKey) -> bool:
        """Whether steps of `other` run in a recording of this without being held up much by the padding."""
        fits = other.tokens <= self.tokens <= max(4 * other.tokens, 64) and other.rows <= self.rows
        return fits and other.shared <= self.shared and other.mixed <= self.mixed


@dataclass(frozen=True, slots=True)
class GraphResult:
    """`logits` [n, vocab] may be overwritten; `tokens` [n] are their greedy choice; `slots` [n] int64. Valid until the next step."""

    logits: torch.Tensor
    tokens: torch.Tensor
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class Recording:
    """`keeps`: memory that the graph uses and nobody else may free."""

    graph: torch.cuda.CUDAGraph
    result: GraphResult
    keeps: object


class RecordedStep(Protocol):
    """What is recorded: a forward pass over an attention backend that has its plan."""

    @property
    def taps(self) -> FeatureTaps | None:
        """Tapped on the way, into memory that stays where it is."""

    def forward(self, batch: ForwardBatch, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [S, vocab] float32 of `batch.logit_indices`, in `out`. Places of `batch.kv_slots` below zero are padding."""


class StepGraphs:
    """Implements `step_runner.FastPath`. Used by one thread, on its current stream."""

    def __init__(
        self,
        step: RecordedStep,
        attention: TritonAttention,
        pool: KVPool,
        tables: SlotTables,
        vocab_size: int,
        sizes: Sequence[int],
        *,
        mixed: bool = True,
    ) -> None:
        """`sizes`: numbers of rows that bring one token each. `mixed`: steps are covered in which some bring several."""
        self._step, self._attention, self._pool, self._tables = step, attention, pool, tables
        self._device = tables.pages.device
        self._sizes = sorted({min(size, tables.pages.shape[0]) for size in sizes})
        between = [size for size in self._sizes if FEW_MIXED[-1] < size < MOST_MIXED[0]]
        self._mixed = (*FEW_MIXED, *between, *MOST_MIXED) if mixed else ()
        most_rows = max(self._sizes[-1], MIXED_ROWS[-1]) if mixed else self._sizes[-1]
        largest = GraphKey(max(self._sizes[-1], *self._mixed, 0), most_rows, shared=mixed, mixed=mixed)
        self._inputs = torch.zeros(sum(self._lengths(largest)) + 8 * largest.tokens, dtype=torch.int32, device=self._device)
        self._logits = torch.empty(largest.rows, vocab_size, dtype=torch.float32, device=self._device)
        if step.taps is not None:
            step.taps.reserve(largest.tokens)
        self._recordings: dict[GraphKey, Recording] = {}
        self._padding: Counter[GraphKey] = Counter()
        self._memory = torch.cuda.graph_pool_handle()
        # Apart from the stream that steps run on: results of earlier steps are freed by other threads meanwhile, which marks that stream.
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @property
    def sizes(self) -> Sequence[int]:
        return self._sizes

    def covers(self, rows: Sequence[PlanRow]) -> bool:
        pairs = sum(len(row.token_ids) * row.end for row in rows if len(row.token_ids) > 1)
        return pairs <= MOST_PAIRS and self._key(rows, shared=False) is not None

    def run(self, rows: Sequence[PlanRow], shared: Sequence[SharedPrefix]) -> GraphResult | None:
        """See `FastPath.run`."""
        key = self._key(rows, shared=bool(shared))
        key = None if key is None else self._recorded(key)
        inputs = None if key is None else self._packed(rows, shared, key)
        if key is None or inputs is None:
            return None
        self._inputs[: len(inputs)].copy_(to_device(inputs, self._device), non_blocking=True)
        recording = self._recordings.get(key)
        if recording is not None:
            recording.graph.replay()
            result = recording.result
        else:
            result = self._compute(key)
            if len(self._recordings) < MAX_RECORDINGS and not is_rehearsing():
                self._recordings[key] = self._record(key)
        return GraphResult(result.logits[: len(rows)], result.tokens[: len(rows)], result.slots[: len(rows)])

    def _key(self, rows: Sequence[PlanRow], *, shared: bool) -> GraphKey | None:
        num_tokens = sum(len(row.token_ids) for row in rows)
        if num_tokens == len(rows):
            size = _at_least(self._sizes, num_tokens)
            return None if size is None else GraphKey(size, size, shared, mixed=False)
        num_rows, size = _at_least(MIXED_ROWS, len(rows)), _at_least(self._mixed, num_tokens)
        return None if num_rows is None or size is None else GraphKey(max(size, num_rows), num_rows, shared, mixed=True)

    def _recorded(self, key: GraphKey) -> GraphKey:
        """The recording to run in; `key` itself where it has one or shall get one now. One token has kernels of its own: always now."""
        if key in self._recordings or key.tokens == 1:
            return key
        larger = [other for other in self._recordings if other.holds(key)]
        if not larger:
            return key
        nearest = min(larger, key=lambda other: (other.tokens, other.rows, other.shared, other.mixed))
        self._padding[key] += 1 + nearest.tokens - key.tokens + nearest.rows - key.rows
        is_paid = self._padding[key] > MOST_PADDING and len(self._recordings) < MAX_RECORDINGS
        return key if is_paid else nearest

    def _packed(self, rows: Sequence[PlanRow], shared: Sequence[SharedPrefix], key: GraphKey) -> Int32Array | None:
        """Tokens, rows and work plan as the graph reads them; None where the plan is larger than the graph provides for."""
        lens = np.array([len(row.token_ids) for row in rows], dtype=np.int32)
        ends = np.array([row.end for row in rows], dtype=np.int32)
        slots = np.array([row.slot for row in rows], dtype=np.int32)
        behind = np.cumsum(lens)
        num_tokens = int(behind[-1])
        padded = np.empty((3, key.tokens), dtype=np.int32)
        padded[:, num_tokens:] = PADDING
        padded[0, :num_tokens] = [token for row in rows for token in row.token_ids]
        padded[1, :num_tokens] = np.arange(num_tokens) + np.repeat(ends - behind, lens)
        padded[2, :num_tokens] = np.repeat(slots, lens)
        last = np.zeros((2, key.rows), dtype=np.int32)
        last[0, : len(rows)], last[1, : len(rows)] = behind - 1, slots
        work = self._attention.plan(lens, ends, slots, shared)
        sizes = self._plan_sizes(key)
        if not sizes.holds(work):
            return None
        return np.concatenate((padded.reshape(-1), last.reshape(-1), sizes.pack(work)))

    def _plan_sizes(self, key: GraphKey) -> PlanSizes:
        return self._attention.plan_sizes(key.tokens, key.rows, shared=key.shared, mixed=key.mixed)

    def _lengths(self, key: GraphKey) -> list[int]:
        return [3 * key.tokens, key.rows, key.rows, *self._plan_sizes(key).lengths]

    def _compute(self, key: GraphKey) -> GraphResult:
        """The step over the fixed buffer: what is recorded."""
        lengths = self._lengths(key)
        rows, last, slots, packed = torch.split(self._inputs[: sum(lengths)], [*lengths[:3], sum(lengths[3:])])
        inputs = decode_inputs(rows.view(3, -1), self._tables.last_token, self._tables.pages, self._tables.page_size)
        self._attention.use(DevicePlan.cut(packed, self._plan_sizes(key), self._tables.pages, inputs.kv_slots), self._pool)
        nothing = packed[:0]
        batch = ForwardBatch(
            token_ids=inputs.token_ids,
            positions=inputs.positions,
            kv_slots=inputs.kv_slots,
            query_starts=nothing,
            kv_lens=nothing,
            page_table=self._tables.pages,
            logit_indices=last,
            query_lens=(),
            kv_lens_host=(),
            token_slots=inputs.slots,
        )
        if self._step.taps is not None:
            self._step.taps.fixed(key.tokens)
        logits = self._step.forward(batch, self._logits[: key.rows])
        return GraphResult(logits, greedy_tokens(logits), slots.long())

    def _record(self, key: GraphKey) -> Recording:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
            try:
                result = self._compute(key)
            finally:
                graph.capture_end()
        _LOG.debug("Recorded %s", key)
        return Recording(graph, result, self._attention.partials)


def _at_least(sizes: Sequence[int], number: int) -> int | None:
    """The smallest of the ascending `sizes` that is no less; None: there is none."""
    at = bisect_left(sizes, number)
    return sizes[at] if at < len(sizes) else None
