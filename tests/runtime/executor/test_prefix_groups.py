"""Shared prefixes, found in page tables, against what the tables say place by place."""

from __future__ import annotations

import random
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.executor.prefix_groups import LEAST_SHARED, PrefixGroups, least_shared
from ramet.runtime.plan import PENDING_TOKEN, PlanRow


@given(page_size=st.sampled_from([1, 16]), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_groups_cover_equal_pages_and_nothing_else(page_size: int, seed: int) -> None:
    rng = random.Random(seed)
    trunk = list(range(5000 // page_size))
    tables: list[list[int]] = []
    for row in range(6):
        parent = rng.choice([trunk, *tables])
        fresh = [10000 * (row + 1) + i for i in range(rng.randint(1, 3000 // page_size + 1))]
        tables.append(parent[: rng.randint(0, len(parent))] + fresh)
    groups = PrefixGroups(6, 30000, page_size)
    rows = [
        PlanRow(str(slot), slot, (PENDING_TOKEN,), len(pages) * page_size - 1, 0, tuple(pages), True) for slot, pages in enumerate(tables)
    ]
    groups.add_pages(rows)
    found = groups.find(rows)
    ends = [0] * 6
    for prefix in found:
        assert prefix.end - prefix.start >= least_shared(len(prefix.rows))
        pages = {tuple(tables[row][prefix.start // page_size : prefix.end // page_size]) for row in prefix.rows}
        assert len(pages) == 1  # the same pages for all
        for row in prefix.rows:
            assert prefix.start == ends[row] and prefix.end < rows[row].end  # a row's prefixes follow each other and leave it something
            ends[row] = prefix.end
    for some in combinations(range(6), 4):
        columns = zip(*(tables[row] for row in some), strict=False)
        common = next((i for i, column in enumerate(columns) if len(set(column)) > 1), 10**6)
        common = min(common, *((rows[row].end - 1) // page_size for row in some)) * page_size
        if common >= 3 * least_shared(4):
            assert all(ends[row] for row in some)
    assert groups.find(rows) is found  # nothing changed: nothing is searched


def test_two_rows_share_only_what_is_very_long() -> None:
    long = LEAST_SHARED[2]
    for length, expected in ((long - 1, 0), (long, 1)):
        groups = PrefixGroups(2, long + 10, 1)
        rows = [
            PlanRow(str(slot), slot, (PENDING_TOKEN,), length + 2, 0, (*range(length), 20000 + slot, 30000, 40000), True)
            for slot in range(2)
        ]
        groups.add_pages(rows)
        assert len(groups.find(rows)) == expected
