"""Which pairs of a token and the feature before it a step brings, as arrays: what an EAGLE-3 head keeps of the step. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ramet.runtime.executor.step_layout import Int64Array, lay_out
from ramet.runtime.plan import PlanRow


@dataclass(frozen=True, slots=True)
class PairLayout:
    """P pairs of a step of T tokens. Features are the step's T, and behind them those of `kept`, places among the features that were kept
    from before. A slot's feature of position p is kept at place slot × `num_kept` + p mod `num_kept`."""

    token_ids: Int64Array  # [P]
    positions: Int64Array  # [P]: one less than the token's
    slots: Int64Array  # [P]
    features: Int64Array  # [P]
    kept: Int64Array
    keeps: Int64Array  # places to keep features at, each once
    keeps_from: Int64Array  # of these, which of the step's T

    @property
    def parts(self) -> tuple[Int64Array, ...]:
        """All arrays, in order."""
        return self.token_ids, self.positions, self.slots, self.features, self.kept, self.keeps, self.keeps_from


def lay_out_pairs(rows: Sequence[PlanRow], num_kept: int) -> PairLayout:
    """`num_kept`: of each slot's features, how many last ones are kept. The first token of a sequence has no feature before it; nor has one
    behind a cached prefix, whose features nobody has."""
    step = lay_out(rows, ())
    starts = step.ends - step.lens
    follows = np.zeros(len(rows), dtype=bool)  # a row of the same slot
    follows[1:] = (step.slots[1:] == step.slots[:-1]) & (starts[1:] == step.ends[:-1])
    is_new = np.array([row.start == 0 or row.reset is not None for row in rows])
    first = step.starts[:-1]
    from_before = first[~follows & ~is_new]
    kept = step.token_slots[from_before] * num_kept + (step.positions[from_before] - 1) % num_kept
    features = np.arange(len(step.token_ids)) - 1
    features[from_before] = len(step.token_ids) + np.arange(len(from_before))
    is_pair = np.ones(len(step.token_ids), dtype=bool)
    is_pair[first[~follows & is_new]] = False
    last_end = np.zeros(step.slots.max() + 1, dtype=np.int64)
    last_end[step.slots] = step.ends
    keeps_from = np.flatnonzero(step.positions >= last_end[step.token_slots] - num_kept)
    keeps = step.token_slots[keeps_from] * num_kept + step.positions[keeps_from] % num_kept
    return PairLayout(
        step.token_ids[is_pair], step.positions[is_pair] - 1, step.token_slots[is_pair], features[is_pair], kept, keeps, keeps_from
    )
