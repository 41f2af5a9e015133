"""Whatever the lengths and prefixes, every query reads its keys once, and what is read in parts is joined."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.attention.attention_backend import SharedPrefix
from ramet.runtime.attention.work_plan import DeviceShape, PlanSizes, WorkPlan, plan_single_queries, plan_work

DEVICE = DeviceShape(num_processors=6, num_kv_heads=2, shared_queries=4, tile=16)
ROWS = st.lists(st.tuples(st.sampled_from((1, 1, 1, 2, 40, 70, 300)), st.integers(0, 3000)), min_size=1, max_size=30)


def plan_rows(rows: list[tuple[int, int]], shared: list[SharedPrefix]) -> WorkPlan:
    """`rows`: new tokens, and tokens before them."""
    query_lens = np.array([query for query, _ in rows], dtype=np.int32)
    kv_lens = np.array([query + before for query, before in rows], dtype=np.int32)
    return plan_work(query_lens, kv_lens, np.arange(100, 100 + len(rows), dtype=np.int32), shared, DEVICE)


@settings(deadline=None, max_examples=100)
@given(ROWS, st.integers(0, 29), st.sampled_from((0, 128, 640)))
def test_every_query_reads_its_keys_once_and_parts_are_joined(rows: list[tuple[int, int]], first_shared: int, prefix: int) -> None:
    sharing = tuple(i for i in range(first_shared, len(rows)) if rows[i][0] == 1 and rows[i][1] >= prefix)
    shared = [SharedPrefix(sharing, 0, prefix)] if prefix and len(sharing) > 1 else []
    work = plan_rows(rows, shared)

    queries = [(row, before + i) for row, (count, before) in enumerate(rows) for i in range(count)]
    ranges: dict[int, list[tuple[int, int]]] = {token: [] for token, _, _ in work.rows.tolist()}
    parts: dict[int, list[int]] = {token: [] for token in ranges}
    num_parts = {token: count for token, _, count in work.rows.tolist()}
    for first, count, table_row, begin, end in (*work.items.tolist(), *work.shared_items.tolist()):
        assert count == 1 or count <= DEVICE.shared_queries
        for member in range(first, first + count):
            token, position, alone = work.members[member].tolist()
            row = queries[token][0]
            assert position == queries[token][1] and (table_row == 100 + row or row in sharing)
            ranges[token].append((begin, end))
            parts[token].append(member)
            assert bool(alone) == (num_parts[token] == 1)
    for token, found in ranges.items():
        found.sort()
        assert found[0][0] == 0 and queries[token][1] < found[-1][1] <= sum(rows[queries[token][0]])
        assert all(left[1] == right[0] for left, right in itertools.pairwise(found))
    joined = {token: sorted(work.order[first : first + count].tolist()) for token, first, count in work.rows.tolist()}
    assert joined == {token: sorted(members) for token, members in parts.items()}

    tiled = [token for first, count, _, _ in work.tiles.tolist() for token in range(first, first + count)]
    assert sorted(tiled + list(ranges)) == list(range(len(queries)))
    for first, count, position, table_row in work.tiles.tolist():
        assert [(table_row - 100, position + i) for i in range(count)] == queries[first : first + count]


@settings(deadline=None, max_examples=100)
@given(ROWS, st.booleans())
def test_a_recording_has_room_for_any_plan_of_its_size(rows: list[tuple[int, int]], roomy: bool) -> None:
    work = plan_rows(rows, [])
    num_tokens, mixed = sum(query for query, _ in rows), any(query > 1 for query, _ in rows)
    size = num_tokens + 50 * roomy
    assert PlanSizes.at_most(size, len(rows), DEVICE, shared=roomy, mixed=mixed or roomy).holds(work)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40))
def test_single_queries_are_planned_as_any_others(kv_lens: list[int]) -> None:
    lens, table_rows = np.array(kv_lens, dtype=np.int32), np.arange(100, 100 + len(kv_lens), dtype=np.int32)
    found = plan_single_queries(lens, table_rows, DEVICE)
    wanted = plan_work(np.ones_like(lens), lens, table_rows, (), DEVICE)
    for one, other in zip(found.arrays, wanted.arrays, strict=True):
        assert one.dtype == other.dtype and one.tolist() == other.tolist()


def test_few_queries_are_read_in_items_and_many_in_tiles() -> None:
    assert not len(plan_rows([(200, 900), (1, 10)], []).tiles)
    assert len(plan_rows([(200, 900), (64, 900)], []).tiles) == 13  # of the 200, by 16
    assert not len(plan_rows([(64, 900)] * 9, []).tiles)


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
