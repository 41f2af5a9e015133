"""Whatever the lengths and prefixes, every row's keys are read once, and what is read in parts is joined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.attention.attention_backend import SharedPrefix
from ramet.runtime.attention.work_plan import DeviceShape, PlanSizes, plan_work

DEVICE = DeviceShape(num_processors=6, num_kv_heads=2, shared_rows=4, tile=16)
ROWS = st.lists(st.tuples(st.sampled_from((1, 1, 1, 2, 40)), st.integers(0, 3000)), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(0, 29), st.sampled_from((0, 128, 640)))
def test_keys_are_read_once_and_parts_are_joined(rows: list[tuple[int, int]], first_shared: int, prefix: int) -> None:
    query_lens = np.array([query for query, _ in rows], dtype=np.int32)
    kv_lens = np.array([query + before for query, before in rows], dtype=np.int32)
    sharing = tuple(i for i in range(first_shared, len(rows)) if query_lens[i] == 1 and kv_lens[i] > prefix)
    shared = [SharedPrefix(sharing, 0, prefix)] if prefix and len(sharing) > 1 else []
    table_rows = np.arange(100, 100 + len(rows), dtype=np.int32)
    work = plan_work(query_lens, kv_lens, table_rows, shared, DEVICE)

    starts = np.concatenate(([0], np.cumsum(query_lens)))
    row_of = {int(starts[i]): i for i in range(len(rows)) if query_lens[i] == 1}
    ranges: dict[int, list[tuple[int, int]]] = {row: [] for row in row_of.values()}
    parts: dict[int, list[int]] = {row: [] for row in row_of.values()}
    num_parts = {row_of[token]: count for token, _, count in work.rows.tolist()}
    for first, count, _, begin, end in (*work.items.tolist(), *work.shared_items.tolist()):
        for member in range(first, first + count):
            token, position, alone = work.members[member].tolist()
            row = row_of[token]
            assert position == kv_lens[row] - 1
            ranges[row].append((begin, end))
            parts[row].append(member)
            assert bool(alone) == (num_parts[row] == 1)
    for row, found in ranges.items():
        assert sorted(found)[0][0] == 0 and sorted(found)[-1][1] == kv_lens[row]
        assert all(left[1] == right[0] for left, right in zip(sorted(found), sorted(found)[1:], strict=False))
    joined = {row_of[token]: sorted(work.order[first : first + count].tolist()) for token, first, count in work.rows.tolist()}
    assert joined == {row: sorted(members) for row, members in parts.items()}

    queries = sorted((first, first + count) for first, count, _, _ in work.tiles.tolist())
    assert sum(end - begin for begin, end in queries) == int(query_lens[query_lens > 1].sum())


def test_large_batches_of_equal_rows_are_not_cut() -> None:
    ones = np.ones(512, dtype=np.int32)
    work = plan_work(ones, ones * 700, ones, (), DeviceShape(132, 8, 16, 128))
    assert len(work.items) == 512 and (work.rows[:, 2] == 1).all()


@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_packed_plan_is_cut_up_again(num_rows: int) -> None:
    lens = np.arange(num_rows, dtype=np.int32) * 900 + 900
    work = plan_work(np.ones(num_rows, dtype=np.int32), lens, lens, (), DEVICE)
    roomy = PlanSizes(64, 8, 80, 16, 80, 4)
    assert roomy.holds(work) and not PlanSizes(64, 8, 80, 0, 80, 4).holds(work)
    items, _, members, rows, order, _ = np.split(roomy.pack(work), np.cumsum(roomy.lengths)[:-1])
    assert (items.reshape(-1, 5)[: len(work.items)] == work.items).all() and not items.reshape(-1, 5)[len(work.items) :].any()
    assert (members.reshape(-1, 3)[: len(work.members)] == work.members).all()
    assert (rows.reshape(-1, 3)[: len(work.rows)] == work.rows).all() and (order[: len(work.order)] == work.order).all()
