"""A step's plan rows as arrays: which token stands where, and whose logits are wanted. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ramet.runtime.plan import PENDING_TOKEN, Capacity, PlanRow

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """T tokens of R rows. `logit_indices` names first the `num_wanted` tokens that were asked for, then the last token of every row that
    samples. `has_pending`: some of `token_ids` are still to be read from the slots."""

    token_ids: Int64Array  # [T]
    positions: Int64Array  # [T]
    token_slots: Int64Array  # [T]
    slots: Int64Array  # [R]
    lens: Int64Array  # [R]: new tokens
    starts: Int64Array  # [R+1]: number of the row's first token in the step
    ends: Int64Array  # [R]: tokens of the sequence after the step
    logit_indices: Int64Array
    num_wanted: int
    has_pending: bool


def lay_out(rows: Sequence[PlanRow], wanted: Sequence[range]) -> StepLayout:
    """`wanted`, parallel to `rows` or empty: tokens of the row, counted from its first, whose logits are needed besides those of the last
    token of every sampling row."""
    lens = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
    ends = np.array([row.end for row in rows], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(lens)))
    slots = np.array([row.slot for row in rows], dtype=np.int64)
    extra = _flat(starts, wanted)
    sampled = starts[1:][[row.samples for row in rows]] - 1
    return StepLayout(
        token_ids=np.array([token for row in rows for token in row.token_ids], dtype=np.int64),
        positions=np.arange(starts[-1]) + np.repeat(ends - starts[1:], lens),
        token_slots=np.repeat(slots, lens),
        slots=slots,
        lens=lens,
        starts=starts,
        ends=ends,
        logit_indices=np.concatenate((extra, sampled)),
        num_wanted=len(extra),
        has_pending=any(row.token_ids[0] == PENDING_TOKEN for row in rows),
    )


def table_width(capacity: Capacity, context_len: int) -> int:
    """Pages that a slot's table has room for."""
    return -(-min(context_len, capacity.num_tokens) // capacity.page_size) + 1


def _flat(starts: Int64Array, wanted: Sequence[range]) -> Int64Array:
    """Row-wise token numbers as token numbers of the step."""
    parts = [start + np.arange(part.start, part.stop) for start, part in zip(starts, wanted, strict=False) if part]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
