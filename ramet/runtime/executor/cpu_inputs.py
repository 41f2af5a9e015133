"""Plan rows → StepBatch on the CPU: arrays that the C++ step reads where they lie. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ramet.runtime.executor.step_layout import Int64Array, lay_out, table_width
from ramet.runtime.models.decoder_step import StepBatch
from ramet.runtime.plan import PENDING_TOKEN, Capacity, PlanRow


class CpuSlotTables:
    """What is remembered per slot: its pages, and the token that it sampled last. The twin of `inputs.SlotTables`."""

    def __init__(self, capacity: Capacity, context_len: int) -> None:
        self._page_size = capacity.page_size
        self.pages = np.zeros((capacity.max_running, table_width(capacity, context_len)), dtype=np.int32)
        self.last_token = np.zeros(capacity.max_running, dtype=np.int64)

    def build(self, rows: Sequence[PlanRow], wanted: Sequence[range] = ()) -> tuple[StepBatch, int]:
        """Any step; applies the rows' new pages. The logits wanted are those of `lay_out`; the number says how many come first."""
        self._add_pages(rows)
        plan = lay_out(rows, wanted)
        batch = StepBatch(
            token_ids=self._resolved(plan.token_ids, plan.token_slots) if plan.has_pending else plan.token_ids,
            positions=plan.positions,
            places=self._places(plan.token_slots, plan.positions),
            query_starts=plan.starts.astype(np.int32),
            kv_lens=plan.ends.astype(np.int32),
            lines=plan.slots,
            page_tables=self.pages,
            logit_indices=plan.logit_indices,
        )
        return batch, plan.num_wanted

    def build_decode(self, rows: Sequence[PlanRow]) -> StepBatch:
        """Rows of one token each, all of which bring logits. A step of one row takes 4 ms, and small array operations right after it, on
        cold caches, 0.1 ms each: this way has a third of those of `build`, which gives the same numbers."""
        self._add_pages(rows)
        columns = np.array([(row.slot, row.token_ids[0], row.start) for row in rows], dtype=np.int64)
        slots, tokens, positions = np.ascontiguousarray(columns.T)
        numbers = np.arange(len(rows) + 1, dtype=np.int64)
        return StepBatch(
            token_ids=self._resolved(tokens, slots),
            positions=positions,
            places=self._places(slots, positions),
            query_starts=numbers.astype(np.int32),
            kv_lens=(positions + 1).astype(np.int32),
            lines=slots,
            page_tables=self.pages,
            logit_indices=numbers[:-1],
        )

    def _add_pages(self, rows: Sequence[PlanRow]) -> None:
        """Write the plan's new pages behind those that the slots have."""
        for row in rows:
            if len(row.new_pages) > 1:
                self.pages[row.slot, row.first_page : row.first_page + len(row.new_pages)] = row.new_pages
        single = [row for row in rows if len(row.new_pages) == 1]
        if single:
            self.pages[[row.slot for row in single], [row.first_page for row in single]] = [row.new_pages[0] for row in single]

    def _resolved(self, tokens: Int64Array, slots: Int64Array) -> Int64Array:
        return np.where(tokens == PENDING_TOKEN, self.last_token[slots], tokens)

    def _places(self, slots: Int64Array, positions: Int64Array) -> Int64Array:
        places: Int64Array = self.pages[slots, positions // self._page_size].astype(np.int64) * self._page_size
        return places + positions % self._page_size
