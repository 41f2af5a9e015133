"""Which decoding rows read the same pages: the radix tree as the page tables of running requests show it.

Pages that several rows name at the same place of their tables hold one and the same prefix. Groups are looked for again only when other
rows decode, or a row's pages were replaced; pages that are appended change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ramet.runtime.attention.attention_backend import SharedPrefix
from ramet.runtime.plan import PlanRow

LEAST_SHARED = {8: 1536, 4: 2048, 2: 8192}
"""Rows → tokens. Rows that follow each other find each other's keys in the GPU's cache, so that reading a prefix once must save more than
one more partial result per row costs. 64 rows on an H200, µs with sharing and without: in eights under 1,024 tokens 59 and 54, under 2,048
66 and 90; in fours under 1,024 64 and 54, under 2,048 87 and 93; in pairs under 4,096 183 and 182, under 8,192 327 and 346
(`benchmarks/gpu/shared_prefix_sweep.py`)."""

Table = npt.NDArray[np.int32]


class PrefixGroups:
    """Keeps the page tables on the host. Used by one thread."""

    def __init__(self, max_running: int, width: int, page_size: int) -> None:
        self._tables: Table = np.zeros((max_running, width), dtype=np.int32)
        self._page_size = page_size
        self._is_stale = True
        self._key: tuple[tuple[int, ...], ...] = ()
        self._found: tuple[SharedPrefix, ...] = ()

    def add_pages(self, rows: Sequence[PlanRow]) -> None:
        for row in rows:
            if row.new_pages:
                self._tables[row.slot, row.first_page : row.first_page + len(row.new_pages)] = row.new_pages
                # Pages from before the row's own new tokens on: a prefix was given, or replaced.
                self._is_stale |= row.first_page * self._page_size < row.start or row.reset is not None

    def find(self, rows: Sequence[PlanRow]) -> tuple[SharedPrefix, ...]:
        """Prefixes that are worth it, of rows with one new token each; outer ones first."""
        decoding = tuple(i for i, row in enumerate(rows) if len(row.token_ids) == 1)
        key = (decoding, tuple(rows[i].slot for i in decoding))
        if self._is_stale or key != self._key:
            self._found = self._search(rows, np.array(decoding, dtype=np.int64))
            self._key, self._is_stale = key, False
        return self._found

    def _search(self, rows: Sequence[PlanRow], decoding: npt.NDArray[np.int64]) -> tuple[SharedPrefix, ...]:
        if len(decoding) < 2:
            return ()
        slots = np.array([rows[i].slot for i in decoding])
        num_pages = np.array([(rows[i].end - 1) // self._page_size for i in decoding])  # a row's last token stays its own
        found: list[SharedPrefix] = []
        pending = [(np.arange(len(decoding)), 0, 0)]  # members, depth that they share, where their unread pages begin
        while pending:
            members, depth, begin = pending.pop()
            for group in self._split(slots, num_pages, members, depth):
                end = self._common_depth(slots[group], depth, int(num_pages[group].min()))
                num_tokens = (end - begin) * self._page_size
                pays = num_tokens >= least_shared(len(group))
                if pays:
                    row_numbers = tuple(decoding[group].tolist())
                    found.append(SharedPrefix(row_numbers, begin * self._page_size, end * self._page_size))
                pending.append((group, end, end if pays else begin))
        return tuple(sorted(found, key=lambda prefix: prefix.start))

    def _split(
        self, slots: npt.NDArray[np.int64], num_pages: npt.NDArray[np.int64], members: npt.NDArray[np.int64], depth: int
    ) -> list[npt.NDArray[np.int64]]:
        """Members that go on from `depth`, by their next page; those who go on alone are left out."""
        members = members[num_pages[members] > depth]
        pages = self._tables[slots[members], depth]
        order = np.argsort(pages, kind="stable")
        borders = np.flatnonzero(np.diff(pages[order])) + 1
        return [group for group in np.split(members[order], borders) if len(group) > 1]

    def _common_depth(self, slots: npt.NDArray[np.int64], depth: int, limit: int) -> int:
        tables = self._tables[slots, depth:limit]
        differs = (tables != tables[0]).any(0)
        return depth + int(differs.argmax()) if differs.any() else limit


def least_shared(num_rows: int) -> int:
    """Tokens from which on it pays that two or more rows read them once."""
    return next(tokens for rows, tokens in LEAST_SHARED.items() if num_rows >= rows)
