"""Plans as tensors, against a table kept in plain Python."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.executor.inputs import SlotTables
from ramet.runtime.plan import PENDING_TOKEN, Capacity, PlanRow

CPU = torch.device("cpu")


@given(page_size=st.sampled_from([1, 2, 16]), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_steps_of_growing_rows(page_size: int, seed: int) -> None:
    rng = random.Random(seed)
    tables = SlotTables(Capacity(1300, page_size, 5), 300, CPU)
    tables.last_token[:] = torch.arange(900, 905)
    free = rng.sample(range(1300), 1300)
    owned: dict[int, list[int]] = {slot: [] for slot in range(5)}
    ends = dict.fromkeys(range(5), 0)
    for _ in range(6):
        rows, wanted = [], []
        for slot in rng.sample(range(5), rng.randint(1, 5)):
            tokens = [rng.randrange(800) for _ in range(rng.choice([1, 1, 5, 40]))]
            if ends[slot] and rng.random() < 0.5:
                tokens[0] = PENDING_TOKEN
            start, first_page = ends[slot], len(owned[slot])
            ends[slot] += len(tokens)
            new = [free.pop() for _ in range(-(-ends[slot] // page_size) - first_page)]
            owned[slot] += new
            rows.append(PlanRow("r", slot, tuple(tokens), start, first_page, tuple(new), rng.random() < 0.7))
            low = rng.randrange(len(tokens))
            wanted.append(range(low, rng.randint(low, len(tokens))))
        inputs = tables.build(rows, wanted)
        check(inputs.batch, rows, owned, page_size)
        starts = [sum(len(r.token_ids) for r in rows[:i]) for i in range(len(rows) + 1)]
        extra = [starts[i] + j for i, part in enumerate(wanted) for j in part]
        last = [starts[i + 1] - 1 for i, row in enumerate(rows) if row.samples]
        assert inputs.batch.logit_indices.tolist() == extra + last and inputs.num_wanted == len(extra)


def check(batch: object, rows: list[PlanRow], owned: dict[int, list[int]], page_size: int) -> None:
    tokens, positions, slots = [], [], []
    for row in rows:
        tokens += [900 + row.slot if token == PENDING_TOKEN else token for token in row.token_ids]
        positions += range(row.start, row.end)
        slots += [owned[row.slot][p // page_size] * page_size + p % page_size for p in range(row.start, row.end)]
    assert batch.token_ids.tolist() == tokens  # type: ignore[attr-defined]
    assert batch.positions.tolist() == positions  # type: ignore[attr-defined]
    assert batch.kv_slots.tolist() == slots  # type: ignore[attr-defined]
    assert batch.query_lens == tuple(len(row.token_ids) for row in rows)  # type: ignore[attr-defined]
    assert batch.kv_lens_host == tuple(row.end for row in rows) == tuple(batch.kv_lens.tolist())  # type: ignore[attr-defined]
    for table_row, row in zip(batch.page_table.tolist(), rows, strict=True):  # type: ignore[attr-defined]
        pages = owned[row.slot]
        assert table_row[: len(pages)] == pages


def test_new_owner_of_a_slot_overwrites_its_pages() -> None:
    tables = SlotTables(Capacity(20, 1, 2), 20, CPU)
    tables.build([PlanRow("a", 1, (1, 2, 3), 0, 0, (7, 8, 9), True)])
    batch = tables.build([PlanRow("b", 1, (4, 5), 0, 0, (3, 2), True)]).batch
    assert batch.page_table.tolist() == [[3, 2]] and batch.kv_slots.tolist() == [3, 2]


def test_a_row_that_starts_behind_cached_pages_brings_their_numbers() -> None:
    """A prefix hit: pages 4 and 5 hold positions 0 … 3 already."""
    tables = SlotTables(Capacity(20, 2, 2), 20, CPU)
    batch = tables.build([PlanRow("a", 0, (9,), 4, 0, (4, 5, 6), True)]).batch
    assert batch.page_table.tolist() == [[4, 5, 6]] and batch.kv_slots.tolist() == [12] and batch.positions.tolist() == [4]
